"""Training that is killed, and training and inference by two processes."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from changenet.classify.sampling import fpratio_weights
from fiducial.run.status import read_status

ROOT = Path(__file__).parents[3]
LATEST = "changenet_model_classify_latest.pth"
pytestmark = pytest.mark.slow

ROWS_SEEN = '''
"""Trains, and writes the rows that each rank trained on."""
import json, os, sys
from changenet.__main__ import TASKS
from changenet.classify.lightning import ClassifyModule
from fiducial import cli

seen, step = [], ClassifyModule.training_step

def recording(self, batch, batch_idx):
    seen.append(batch["row"].tolist())
    return step(self, batch, batch_idx)

ClassifyModule.training_step = recording
code = cli.main(TASKS, sys.argv[2:], prog="changenet")
open(f"{sys.argv[1]}/rank{os.environ['RANK']}.json", "w").write(json.dumps(seen))
sys.exit(code)
'''


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "changenet", *map(str, arguments)]


def call(arguments: list[str]) -> None:
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def torchrun(*arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, *map(str, arguments)]


def step_losses(folder: Path) -> dict[int, float]:
    """The last value written for every step: a resumed run writes the steps after its checkpoint again."""
    events = EventAccumulator(str(folder / "lightning_logs/version_1"), size_guidance={"scalars": 0})
    return {event.step: event.value for event in events.Reload().Scalars("train_loss_step")}


def kill_while_training(arguments: list[str], delay: float) -> bool:
    """Start a training and kill it ``delay`` seconds after its first batch is due; whether it was still running."""
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "Sampling Defective" in line:
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.fixture
def spec_file(make_spec_file) -> Path:
    """Four epochs of six steps, with everything that is random switched on."""
    return make_spec_file(train__num_epochs=4, dataset__classify__augmentation_config={"augment": True})


@pytest.fixture(scope="module")
def uninterrupted(pair_data, make_spec_tree, tmp_path_factory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    changes = {"train__num_epochs": 4, "dataset__classify__augmentation_config": {"augment": True}}
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(make_spec_tree(pair_data, folder / "results", **changes)))
    call(command("train", "-e", spec))
    return step_losses(folder / "results/train")


class TestKill:
    @pytest.mark.parametrize("interval", ["epoch", "step"])
    def test_killed_training_ends_with_the_same_losses(self, uninterrupted, spec_file, tmp_path, interval):
        every = ["train.checkpoint_interval_unit=step", "train.checkpoint_interval=4"] if interval == "step" else []
        arguments = command("train", "-e", spec_file, *every)
        delays = random.Random(interval)
        killed = [kill_while_training(arguments, delays.uniform(0.2, 4)) for _ in range(3)]
        assert any(killed)
        call(arguments)
        folder = tmp_path / "results/train"
        assert step_losses(folder) == uninterrupted
        assert len(uninterrupted) == 24
        assert (folder / LATEST).resolve().name == "model_epoch_003_step_00024.pth"
        assert not list(folder.glob(".*.tmp"))


class TestTwoProcesses:
    def test_ranks_share_one_draw_and_agree_with_one_process(self, make_spec_file, pair_data, tmp_path):
        spec, script = make_spec_file(train__num_epochs=1), tmp_path / "record.py"
        script.write_text(ROWS_SEEN)
        call(torchrun(script, tmp_path, "train", "-e", spec))

        seen = [np.concatenate(json.loads((tmp_path / f"rank{rank}.json").read_text())) for rank in (0, 1)]
        labels = [int(row % 3 == 2) for row in range(24)]
        weights = fpratio_weights(labels, 0.5)
        draw = np.random.default_rng((1234, 0)).choice(24, 24, p=weights / weights.sum())
        for rank in (0, 1):  # disjoint positions of one draw
            assert seen[rank].tolist() == draw[rank::2].tolist()

        results = tmp_path / "results"
        trained = [r["kpi"] for r in read_status(results / "train/status.json") if r["message"].startswith("Eval")]
        call(command("evaluate", "-e", spec, "evaluate.checkpoint=latest"))
        alone = json.loads((results / "evaluate/metrics.json").read_text())["kpis"]
        for name in ("acc", "fpr", "far", "auroc", "f1"):
            assert trained[-1][f"val_{name}"] == pytest.approx(alone[f"test_{name}"], abs=1e-6)

        written = []
        for name, start in (("one", command()), ("two", torchrun("-m", "changenet"))):
            target = tmp_path / name
            options = ("-e", spec, "inference.checkpoint=latest", f"inference.results_dir={target}")
            call([*start, "inference", *map(str, options)])
            written.append((target / "inference.csv").read_bytes())
        assert written[0] == written[1]  # 11 rows: three batches of four, two of them on the first rank
        assert written[0].count(b"\n") == 12
