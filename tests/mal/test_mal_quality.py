import math

import numpy as np
import pytest

from mal.annotations import Box, Picture
from mal.decode import PlacedMask
from mal.quality import Judgement, box_fit, calibration, jittered, rle_iou

BOX = Box(0, 1, 0, 0, (10.0, 10.0, 30.0, 20.0))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((10, 10, 30, 20), 1.0), ((10, 10, 20, 20), 0.5), ((0, 0, 5, 5), 0.0), (None, 0.0), ((10, 10, 30, 30), 0.5)],
)
def test_box_fit(bounds, expected):
    assert box_fit(BOX, bounds) == pytest.approx(expected)


def test_score_is_the_geometric_mean_of_what_is_known():
    assert Judgement(0.8).score == pytest.approx(0.8)
    assert Judgement(0.9, 0.4).score == pytest.approx(0.6)
    assert Judgement(1.0, 1.0, 0.0).score == 0


def test_rle_iou():
    one = PlacedMask(np.ones((2, 2), bool), 0, 0, 4, 4).rle()
    other = PlacedMask(np.ones((2, 2), bool), 1, 0, 4, 4).rle()
    empty = PlacedMask(np.zeros((2, 2), bool), 0, 0, 4, 4).rle()
    assert rle_iou(one, other) == pytest.approx(2 / 6)
    assert (rle_iou(empty, empty), rle_iou(one, empty)) == (1, 0)


def test_jitter_stays_in_the_picture():
    assert jittered(BOX, Picture(1, "a", 100, 100)).corners == pytest.approx((9, 9.5, 31, 20.5))
    assert jittered(BOX, Picture(1, "a", 30, 20)).corners == pytest.approx((9, 9.5, 30, 20))


def test_calibration():
    rows = calibration([0.05, 0.1, 0.95, 1.0], [0.2, 0.4, 0.8, 1.0])
    assert [row.count for row in rows] == [2, 0, 0, 0, 2]
    assert rows[0].mean_iou == pytest.approx(0.3)
    assert rows[-1].mean_iou == pytest.approx(0.9)
    assert math.isnan(rows[1].mean_iou)
