"""Several processes on the CPU, started by torchrun."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fiducial.checkpoints.reading import read
from fiducial.run.status import read_status

MAIN = Path(__file__).parents[1] / "support" / "tiny_main.py"


@pytest.fixture
def start(tmp_path):
    (tmp_path / "spec.yaml").write_text("wandb: {enable: false}\ntrain: {num_epochs: 2}\n")

    def run(processes, *argv, **env):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
        command = [sys.executable, *launcher, str(MAIN), argv[0], "-e", "spec.yaml", *argv[1:]]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TINY_SEEN": str(tmp_path)} | env
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)

    return run


@pytest.mark.slow
class TestTwoProcesses:
    def test_train_and_evaluate(self, start, tmp_path):
        done = start(2, "train", "results_dir=two", "dataset.rows=22")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Execution status: PASS") == 1
        for rank in (0, 1):  # a thread that is still there when Python ends can abort the process
            threads = json.loads((tmp_path / f"{rank}.threads.json").read_text())
            assert not [name for name in threads if "gloo" in name]
        first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
        for epoch in (0, 1):
            shares = [[row for e, _, rows, *_ in seen if e == epoch for row in rows] for seen in (first, second)]
            assert [len(set(share)) for share in shares] == [8, 8]
            assert not set(shares[0]) & set(shares[1])
        messages = [record["message"] for record in read_status(tmp_path / "two/train/status.json")]
        assert messages.count("Starting Tiny train.") == messages.count("Training loop complete.") == 1
        files = sorted(path.name for path in (tmp_path / "two/train").glob("*.pth"))
        assert files == [
            *("model_epoch_000_step_00002.pth", "model_epoch_001_step_00004.pth"),
            *("tiny_model_best.pth", "tiny_model_latest.pth"),
        ]
        checkpoint = f"evaluate.checkpoint={tmp_path / 'two/train' / files[1]}"
        scores = []
        for processes, folder in ((2, "shared"), (0, "alone")):
            done = start(processes, "evaluate", f"results_dir={folder}", checkpoint)
            assert done.returncode == 0, done.stderr
            scores.append(json.loads((tmp_path / folder / "evaluate/evaluate.json").read_text())["rows"])
        assert scores[0] == scores[1]  # 3 batches: one rank has two of them, the other one
        assert [row for row, _ in scores[0]] == list(range(10))

        done = start(2, "evaluate", "results_dir=few", checkpoint, TINY_VAL="3")  # one batch
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "few/evaluate/evaluate.json").read_text())["rows"] == scores[0][:3]
        done = start(2, "train", "results_dir=few", "dataset.rows=22", TINY_VAL="3")
        assert done.returncode == 1
        assert "validation data · fewer batches than the 2 devices" in done.stderr

    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
    def test_compiled_training_is_that_of_one_that_is_not(self, start, tmp_path):
        """By SGD: Adam makes steps of rounding errors, where a bias before a norm has no gradient."""
        states = []
        for folder, *compiled in (("plain",), ("compiled", "train.compile=true")):
            done = start(2, "train", f"results_dir={folder}", "dataset.rows=22", "train.optim=sgd", *compiled)
            assert done.returncode == 0, done.stderr
            assert "uncompiled" not in done.stderr
            states.append(read(tmp_path / folder / "train" / "tiny_model_latest.pth").state_dict)
        assert list(states[0]) == list(states[1]), "no name begins with _orig_mod"
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_failing_rank_ends_all(self, start, tmp_path, rank):
        begin = time.monotonic()
        done = start(2, "train", "results_dir=two", "dataset.rows=22", TINY_FAILS=str(rank))
        assert done.returncode == 1
        assert time.monotonic() - begin < 90
        assert f"rank {rank} is broken" in done.stderr
        assert read_status(tmp_path / "two/train/status.json")[-1]["status"] == "FAILURE"

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_killed_rank_is_told_of(self, start, tmp_path, rank):
        done = start(2, "train", "results_dir=two", "dataset.rows=22", TINY_DIES=str(rank))
        assert done.returncode == 1
        told = [line for line in done.stderr.splitlines() if " - [Fiducial] - ERROR - " in line]
        assert "another process" in told[0]  # whether its silence or torchrun's signal is noticed first
        assert not [line for line in done.stderr.splitlines() if line.startswith("[rank")]
        last = read_status(tmp_path / "two/train/status.json")[-1]
        assert last["status"] == "FAILURE"
        assert "another process" in last["message"]
        assert rank or last["message"].startswith("MachineError: another process of this run · is gone")
