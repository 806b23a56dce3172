"""The benchmark of growth runs, and says what grows."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

import growth
from growth import Price, Work, show


@pytest.fixture
def surroundings(monkeypatch):
    """What the program changes in its process."""
    monkeypatch.setenv("FIDUCIAL_CACHE", "")
    monkeypatch.setattr(growth.kept, "SETTLED_NS", growth.kept.SETTLED_NS)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("network", list(growth.NETWORKS))
def test_every_work_runs(network, capsys, surroundings):
    assert growth.main(["--quick", "--cpu", "--only", network]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith(f"{network}: ")) + 1 :]
    works = [line.strip() for line in table if "2 kB: " in line]
    for work in ("check, the first", "check again", "train, until the first batch", "evaluate: files and report"):
        assert any(line.startswith(work) for line in works), work
    assert all(len(re.findall(r"[-.\d]+ us +[-.\d]+ kB", line)) == 3 for line in works)


def prices(*each, limit=None):
    """One work at 100 and at 200 rows: microseconds and kB of a row."""
    return {100 * (place + 1): [(Work("a work", list, limit), Price(*price))] for place, price in enumerate(each)}


@pytest.mark.parametrize(
    ("of_100", "of_200", "limit", "said", "met"),
    [
        ((10, 1), (10, 1), None, ["10.0 us   1.00 kB", "flat; 2 kB: met"], True),
        ((10, 1), (30, 1), None, ["50.0 us   1.00 kB", "GROWS; 2 kB: met"], True),
        ((10, 9), (10, 5), None, ["10.0 us   1.00 kB", "flat; 2 kB: met"], True),
        ((10, 1), (10, 3), None, ["10.0 us   5.00 kB", "flat; 2 kB: MISSED"], False),
        ((90, 1), (50, 1), 20, ["10.0 us   1.00 kB", "flat; at most 20 us: met; 2 kB: met"], True),
        ((10, 1), (20, 1), 20, ["30.0 us   1.00 kB", "GROWS; at most 20 us: MISSED; 2 kB: met"], False),
    ],
)  # fmt: skip
def test_what_is_said(of_100, of_200, limit, said, met, capsys):
    assert show("a network", prices(of_100, of_200, limit=limit)) is met
    assert re.search(r" +".join(map(re.escape, said)), capsys.readouterr().out)
