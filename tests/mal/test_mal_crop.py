"""Geometry of crops, against hand-worked corners and a picture laid out nine times."""

import numpy as np
import pytest

from mal.crop import Crop, crop_around, stretched, training_margins


class TestCropAround:
    @pytest.mark.parametrize(
        ("box", "margins", "expected"),
        [  # corners worked out by hand
            ((10.5, 20.2, 40.5, 60.2), [0.3] * 4, (6, 14, 46, 68)),
            ((0, 0, 10, 10), [0] * 4, (0, 0, 11, 11)),
            ((10, 10, 20, 30), [1, 0, 0, 1], (5, 10, 21, 41)),
        ],
    )
    def test_hand_worked(self, box, margins, expected):
        crop = crop_around(box, margins)
        assert (crop.x0, crop.y0, crop.x1, crop.y1) == expected

    def test_larger_margins_hold_smaller_ones(self):
        small, large = crop_around((5, 5, 25, 30), [0.1] * 4), crop_around((5, 5, 25, 30), [0.5] * 4)
        assert large.x0 <= small.x0 < small.x1 <= large.x1
        assert large.y0 <= small.y0 < small.y1 <= large.y1


class TestPixels:
    def test_beyond_an_edge_the_picture_begins_again(self):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 255, (20, 30, 3), np.uint8)
        nine = np.tile(image, (3, 3, 1))
        for _ in range(50):
            x0, y0 = rng.integers(-30, 30), rng.integers(-20, 20)
            crop = Crop(x0, y0, x0 + rng.integers(1, 30), y0 + rng.integers(1, 20))
            expected = nine[crop.y0 + 20 : crop.y1 + 20, crop.x0 + 30 : crop.x1 + 30]
            assert np.array_equal(crop.pixels(image), expected)

    def test_far_beyond_the_picture(self):
        image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        assert Crop(-5, -5, 6, 6).pixels(image).shape == (11, 11, 3)


class TestBoxMask:
    def test_last_row_and_column_belong_to_the_box(self):
        mask = Crop(0, 0, 10, 10).box_mask((2.7, 3.2, 5.9, 4.1), 10, 10, wrapped=False)
        assert np.argwhere(mask).min(0).tolist() == [3, 2]
        assert np.argwhere(mask).max(0).tolist() == [4, 5]
        assert mask.sum() == 2 * 4

    def test_outside_the_picture_there_is_nothing_or_the_box_again(self):
        crop = Crop(-5, 0, 10, 10)
        assert crop.box_mask((6, 2, 9, 4), 10, 10, wrapped=False)[:, :5].sum() == 0
        assert crop.box_mask((6, 2, 9, 4), 10, 10, wrapped=True)[:, :5].sum() == 3 * 4

    def test_equals_a_mask_of_the_whole_picture_that_is_cut(self):
        whole = np.zeros((40, 50), np.uint8)
        whole[7:21, 11:31] = 1
        crop = crop_around((11, 7, 30, 20), [0.3] * 4)
        assert np.array_equal(
            crop.box_mask((11, 7, 30, 20), 50, 40, wrapped=False), crop.pixels(whole[..., None])[..., 0]
        )

    def test_stretching_the_sides_is_stretching_the_mask(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            width, height = (int(side) for side in rng.integers(5, 200, 2))
            x, y = rng.uniform(-5, width), rng.uniform(-5, height)
            box = x, y, x + rng.uniform(0.1, width), y + rng.uniform(0.1, height)
            crop, wrapped = crop_around(box, rng.uniform(0, 1.5, 4)), bool(rng.random() < 0.5)
            size = int(rng.integers(8, 130))
            whole = crop.box_mask(box, width, height, wrapped=wrapped)
            sides = crop.box_mask(box, width, height, wrapped=wrapped, size=size)
            assert np.array_equal(sides, stretched(whole, size))


class TestMargins:
    def test_opposite_sides_share_their_growth(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            left, top, right, bottom = training_margins(rng, 0, 1.2)
            assert min(left, top, right, bottom) >= 0
            assert left / 1.2 + right / 1.2 <= 1 + 1e-9
            assert top / 1.2 + bottom / 1.2 <= 1 + 1e-9

    def test_constant_ends(self):
        left, _, right, _ = training_margins(np.random.default_rng(1), 0.5, 0.5)
        assert left + right == pytest.approx(0.5)


def test_masks_stay_zero_and_one_when_they_are_stretched():
    mask = np.zeros((37, 53), np.uint8)
    mask[5:20, 7:40] = 1
    assert set(np.unique(stretched(mask, 64))) == {0, 1}
    assert set(np.unique(stretched(mask, 16))) == {0, 1}
