import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

from demo_segment_baseline import best_baseline, best_threshold, difference


class TestDifference:
    def test_mean_of_the_channels(self):
        before, after = np.zeros((1, 1, 3), np.uint8), np.array([[[255, 0, 51]]], np.uint8)
        assert difference(before, after)[0, 0] == pytest.approx(1.2 / 3)


class TestBestThreshold:
    def test_hand_computed(self):
        # the three highest hold two changes of three: F1 = 2 * 2 / (3 + 3); the two highest one: 2 / (2 + 3)
        f1, threshold = best_threshold(np.array([0.9, 0.8, 0.7, 0.2, 0.1]), np.array([True, False, True, False, True]))
        assert f1 == pytest.approx(6 / 8)  # all five: 2 * 3 / (5 + 3)
        assert threshold == 0.1

    def test_ties_cannot_be_parted(self):
        f1, _ = best_threshold(np.array([0.5, 0.5]), np.array([True, False]))
        assert f1 == pytest.approx(2 / 3)

    def test_perfect(self):
        assert best_threshold(np.array([0.1, 0.9]), np.array([False, True])) == (1.0, 0.9)


def test_of_a_folder(tmp_path):
    for part in ("A", "B", "label", "list"):
        (tmp_path / part).mkdir()
    picture = np.full((16, 16, 3), 60, np.uint8)
    Image.fromarray(picture).save(tmp_path / "A" / "x.png")
    picture[4:8, 4:8] = 200
    Image.fromarray(picture).save(tmp_path / "B" / "x.png")
    Image.fromarray(picture[..., 0] - 60).save(tmp_path / "label" / "x.png")
    (tmp_path / "list" / "test.txt").write_text("x.png\n")
    assert best_baseline(tmp_path) == 1.0
