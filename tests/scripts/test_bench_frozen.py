"""The benchmark of frozen backbones runs, and both ways of every comparison have the same losses."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import frozen


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The benchmark sets the threads and the cache folder of its whole process."""
    monkeypatch.setenv("FIDUCIAL_CACHE", "")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_part_runs(capsys):
    assert frozen.main(["--quick", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"\d\.\d\dx", printed)) == 4
    # 3 rows of each of 2 goldens, read and computed once
    assert printed.count("8 kept in") == 3
    assert printed.count("largest difference of a loss") == 4


def test_losses_that_differ_are_found():
    class Fixed:
        def __init__(self, *values):
            self.losses = lambda: list(values)

    frozen.assert_same_losses(Fixed(1.0, 2.0), Fixed(1.0, 2.000001))
    with pytest.raises(AssertionError, match="different losses"):
        frozen.assert_same_losses(Fixed(1.0, 2.0), Fixed(1.0, 2.1))
