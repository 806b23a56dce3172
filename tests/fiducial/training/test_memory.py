"""The memory of a training step, as estimated and as a real step takes it on the CPU."""

import re
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl

from fiducial import cli
from fiducial.training.memory import StepMemory

sys.path.append(str(Path(__file__).parents[2] / "support"))
sys.path.append(str(Path(__file__).parents[3] / "scripts" / "bench"))

import small_runs
from measure import megabytes_of_tensors

LARGE = {
    "classify": [
        "dataset.classify.image_width=128",
        "dataset.classify.image_height=128",
        "dataset.classify.batch_size=2",  # a real step shares the golden that larger ones of so few rows have twice
    ],
    "segment": ["dataset.segment.img_size=128"],
    "mal": ["dataset.crop_size=128"],
    "mlrecog": ["model.input_width=96", "model.input_height=96"],
}
"""Sizes at which activations count beside weights."""
HALF = {
    "classify": "train.precision=bf16-mixed",
    "segment": "train.precision=bf16-mixed",
    "mal": "train.use_amp=true",  # in fp16, of which the estimate is that of bf16
    "mlrecog": "train.precision=bf16",
}
CHECKPOINTED = {
    "classify": "model.backbone.activation_checkpointing=true",
    "segment": "model.backbone.activation_checkpointing=true",
    "mal": "model.activation_checkpointing=true",
    "mlrecog": "model.activation_checkpointing=true",
}


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
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", LARGE)
def test_a_real_step_takes_as_much(name, half, data):
    overrides = [*LARGE[name], *([HALF[name]] if half else [])]
    memory = estimated(name, data, *overrides)
    task, composed = small_runs.composed(name, data, *overrides)
    runtime = task.runtime(composed.spec)
    module, pictures = runtime.module(pretrained=False), runtime.datamodule()
    module.policy = task.policy(composed.spec)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if half else "32-true",
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    measured = 1e6 * megabytes_of_tensors(lambda: trainer.fit(module, datamodule=pictures)) + weights
    assert memory.peak(memory.batch_size) == pytest.approx(measured, rel=0.03)


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
    assert f"{text} is no memory of a GPU, in GB" in capsys.readouterr().err
