"""ML Recog's benchmark runs, and both ways of every comparison give the same."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import mlrecog_parts as bench
from demo_mlrecog_baseline import PIXELS, baselines


def test_every_part_runs(capsys):
    before = torch.get_num_threads()
    try:
        assert bench.main(["--quick", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().out
    assert re.findall(r"^\((\w)\)", said, re.MULTILINE) == ["a", "b", "c", "d"]
    assert len(re.findall(r"\d\.\d\dx  \(target", said)) == 4


def test_ways_that_differ_are_not_timed(monkeypatch):
    exact = bench.nearest
    monkeypatch.setattr(bench, "nearest", lambda queries, gallery, k: exact(-queries, gallery, k))
    with pytest.raises(AssertionError, match="differ"):
        list(bench.searching(bench.QUICK, 1))


def test_pixels(tmp_path):
    """Stripes across and down: the nearest pixels are of the right class, but for stripes in the wrong folder."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    stripes = {"across": np.indices((8, 8))[0] % 2, "down": np.indices((8, 8))[1] % 2}
    for side in ("reference", "query"):
        for name, pattern in stripes.items():
            (tmp_path / side / name).mkdir(parents=True)
            for number in range(2):
                swapped = stripes["down"] if (side, name, number) == ("query", "across", 1) else pattern
                pixels = (swapped * 200 + rng.integers(0, 20, (8, 8))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / side / name / f"{number}.png")
    assert baselines(tmp_path / "reference", tmp_path / "query", side=8) == {PIXELS: pytest.approx(0.75)}
