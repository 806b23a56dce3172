"""From crops to masks and run lengths, against COCO's own code."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mal.crop import Crop
from mal.decode import PlacedMask, mask_prob, place, threshold_of


def placed(seed, *, height=23, width=31):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, width - 3), rng.integers(0, height - 3)
    mask = rng.random((rng.integers(1, height - y + 1), rng.integers(1, width - x + 1))) > rng.random()
    return PlacedMask(mask, int(x), int(y), width, height)


class TestPlacedMask:
    @pytest.mark.parametrize("seed", range(30))
    def test_run_lengths_equal_those_of_the_whole_picture(self, seed):
        mask = placed(seed)
        expected = coco_mask.encode(np.asfortranarray(mask.full().astype(np.uint8)))
        assert mask.rle() == {"size": [23, 31], "counts": expected["counts"].decode()}

    @pytest.mark.parametrize("corner", [(0, 0), (5, 0), (0, 7)])
    def test_columns_of_the_whole_height_join(self, corner):
        x, y = corner
        mask = PlacedMask(np.ones((10 - y, 4), bool), x, y, 12, 10)
        assert sum(mask.runs()) == 120
        expected = coco_mask.encode(np.asfortranarray(mask.full().astype(np.uint8)))
        assert mask.rle()["counts"] == expected["counts"].decode()

    def test_empty_and_full(self):
        empty = PlacedMask(np.zeros((2, 2), bool), 1, 1, 4, 3)
        assert (empty.runs(), empty.bounds(), empty.area) == ([12], None, 0)
        full = PlacedMask(np.ones((3, 4), bool), 0, 0, 4, 3)
        assert (full.runs(), full.bounds()) == ([0, 12], (0, 0, 4, 3))

    def test_iou_with_a_mask_of_the_whole_picture(self):
        mask = PlacedMask(np.ones((2, 2), bool), 1, 1, 5, 5)
        other = np.zeros((5, 5), np.uint8)
        other[1:3, 2:4] = 1
        assert mask.iou(other) == pytest.approx(2 / 6, abs=1e-6)

    def test_within_a_box(self):
        mask = PlacedMask(np.ones((4, 4), bool), 2, 2, 10, 10).within((3.5, 0, 4.2, 3.9))
        assert mask.bounds() == (3, 2, 5, 4)


class TestPlace:
    def test_cut_to_the_picture_and_thresholded(self):
        prob = torch.zeros(8, 8)
        prob[:, 4:] = 0.6
        mask = place(prob, Crop(-4, -4, 4, 4), width=10, height=6, threshold=0.5)
        assert mask.mask.shape == (4, 4)
        assert mask.full()[:4, :4].all()
        assert mask.area == 16

    def test_the_threshold_itself_is_no_mask(self):
        assert place(torch.full((2, 2), 0.5), Crop(0, 0, 2, 2), width=2, height=2, threshold=0.5).area == 0


def test_nothing_is_probable_outside_the_box():
    boxmask = torch.zeros(1, 1, 8, 8)
    boxmask[..., 2:5, 2:5] = 1
    prob = mask_prob(torch.zeros(1, 1, 2, 2), boxmask)
    assert torch.equal(prob, boxmask * 0.5)


def test_thresholds_by_size():
    assert [threshold_of([0.1], bucket) for bucket in range(3)] == [0.1] * 3
    assert [threshold_of([0.1, 0.2, 0.3], bucket) for bucket in range(3)] == [0.1, 0.2, 0.3]
