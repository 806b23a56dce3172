"""Training and inference by two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fiducial import cli
from mal.__main__ import TASKS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def by_two(*arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, "-m", "mal", *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_labels_are_those_of_one_process(write_spec, tmp_path):
    spec = write_spec(tmp_path, train__num_epochs=1)
    by_two("train", "-e", spec)
    by_two("inference", "-e", spec, f"inference.results_dir={tmp_path / 'two'}")
    one = ["inference", "-e", str(spec), f"inference.results_dir={tmp_path / 'one'}"]
    assert cli.main(TASKS, one, prog="mal") == 0
    for name in ("instances_val2017_mal.json", "quality.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
