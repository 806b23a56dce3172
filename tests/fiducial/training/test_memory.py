"""The memory of a training step, as estimated and as a real step takes it on the CPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fiducial import cli
from fiducial.training.memory import StepMemory

sys.path.append(str(Path(__file__).parents[2] / "support"))

import small_runs

ROOT = Path(__file__).parents[3]
LARGE = {
    "classify": ["dataset.classify.image_width=128", "dataset.classify.image_height=128"],
    "segment": ["dataset.segment.img_size=128"],
    "mal": ["dataset.crop_size=128"],
    "mlrecog": ["model.input_width=96", "model.input_height=96"],
}
"""Sizes at which activations count beside what a process holds anyhow."""
CHECKPOINTED = {
    "classify": "model.backbone.activation_checkpointing=true",
    "segment": "model.backbone.activation_checkpointing=true",
    "mal": "model.activation_checkpointing=true",
    "mlrecog": "model.activation_checkpointing=true",
}

REAL_STEPS = """
import sys
sys.path[:0] = [{support!r}, {bench!r}]
import pytorch_lightning as pl, torch
from measure import measure
import small_runs
torch.set_num_threads(1)
task, composed = small_runs.composed({name!r}, {folder!r}, *{overrides!r})
runtime = task.runtime(composed.spec)
module, data = runtime.module(pretrained=False), runtime.datamodule()
module.policy = task.policy(composed.spec)
weights = sum(p.nbytes for p in (*module.parameters(), *module.buffers()))
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 2
def steps(count):
    data.num_workers = 0
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=count, limit_val_batches=0, **quiet)
    trainer.fit(module, datamodule=data)
    return trainer
held = steps(1)  # libraries take their memory once
del held
for p in module.parameters():
    p.grad = None
turn = measure(lambda: steps(2))
print("PEAK", int(turn.megabytes * 1e6 + weights))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in LARGE:
        small_runs.draw(name, folder)
    return folder


def estimated(name, folder, *overrides):
    task, composed = small_runs.composed(name, folder, *overrides)
    return StepMemory(task.runtime(composed.spec), task.policy(composed.spec))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read on Linux only")
@pytest.mark.parametrize("name", LARGE)
def test_a_real_step_takes_as_much(name, data):
    memory = estimated(name, data, *LARGE[name])
    code = REAL_STEPS.format(
        support=str(ROOT / "tests" / "support"),
        bench=str(ROOT / "scripts" / "bench"),
        name=name,
        folder=str(data),
        overrides=LARGE[name],
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = int(done.stdout.split("PEAK")[1])
    assert memory.peak(memory.batch_size) == pytest.approx(measured, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_largest_batch_and_checkpointing(name, data):
    memory = estimated(name, data, *LARGE[name])
    budget = 3e9
    largest = memory.largest(budget)
    assert memory.peak(largest) <= budget < memory.peak(largest + max(1, largest // 50))
    assert memory.largest(1e6) == 0
    saved = estimated(name, data, *LARGE[name], CHECKPOINTED[name])
    assert saved.peak(16) < memory.peak(16)


@pytest.mark.slow
def test_check_says_what_fits(data, capsys):
    tasks = small_runs.RUNS["mlrecog"][0]
    small_runs.composed("mlrecog", data)
    capsys.readouterr()
    spec, small = str(data / "mlrecog.yaml"), ["dataset.workers=0", "train.batch_size=12"]

    def run(*options):
        code = cli.main(tasks, ["check", *options, "-e", spec, *small], prog="mlrecog")
        return code, capsys.readouterr().err

    code, said = run("train", "--gpu-memory-gb", "8")
    assert code == 0
    assert "a batch of 12 takes about 0.2 GB" in said
    (largest,) = re.findall(r"should fit into 8 GB: (\d+)", said)
    assert int(largest) > 500
    code, said = run("train", "--gpu-memory-gb", "0.1")
    assert code == 0, "another GPU may have more"
    assert "should fit into 0.1 GB: none" in said
    assert "--gpu-memory-gb · 0.1, and a batch of 12 takes" in said
    code, said = run("train", "--gpu-memory-gb", "8", "model.feat_dim=0")
    assert code == 1
    assert "takes about" not in said
    assert run("train", "--gpu-memory-gb", "8", "--spec-only")[0] == 1
    assert run("evaluate", "--gpu-memory-gb", "8")[0] == 1


@pytest.mark.parametrize("text", ["0", "-4", "much", "nan"])
def test_a_memory_that_is_none(text, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(small_runs.RUNS["mal"][0], ["check", "train", "--gpu-memory-gb", text, "-e", "x"], prog="mal")
    assert caught.value.code == 2
