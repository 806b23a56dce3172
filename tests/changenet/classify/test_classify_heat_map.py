"""Where a part looks different from its golden."""

import numpy as np
import pytest
from PIL import Image

from changenet.classify.heat_map import difference_heat_map


@pytest.fixture
def board():
    """A smooth picture with a part on it, uint8 (160, 200, 3)."""
    y, x = np.mgrid[:160, :200]
    image = np.stack([90 + 30 * np.sin(x / 7), 90 + 30 * np.cos(y / 9), 80 + 20 * np.sin((x + y) / 11)], axis=-1)
    image[50:110, 60:140] = 200
    return image.astype(np.uint8)


def _colourful(image):
    return image.max(axis=2).astype(int) - image.min(axis=2) > 40


class TestHeatMap:
    def test_marks_the_difference_and_nothing_else(self, board):
        test = board.copy()
        test[70:90, 120:140] = 30
        heat = difference_heat_map(test, board)
        assert (heat.shape, heat.dtype) == ((160, 200, 3), np.uint8)
        rows, columns = np.nonzero(_colourful(heat))
        assert (round(rows.mean()), round(columns.mean())) == (pytest.approx(80, abs=2), pytest.approx(130, abs=2))
        assert _colourful(heat).mean() < 0.04

    def test_equal_images_brightness_and_noise_stay_cold(self, board):
        noisy = np.clip(board + np.random.default_rng(0).normal(0, 6, board.shape), 0, 255).astype(np.uint8)
        for test in (board, noisy, (board * 0.8).astype(np.uint8)):
            assert _colourful(difference_heat_map(test, board)).mean() < 0.01

    def test_a_shifted_golden_is_registered(self, board):
        golden = np.roll(board, (4, -6), axis=(0, 1))
        assert _colourful(difference_heat_map(board, golden))[12:-12, 12:-12].mean() < 0.01

    def test_golden_of_another_size_and_large_images(self, board):
        golden = np.asarray(Image.fromarray(board).resize((400, 320)))
        assert difference_heat_map(board, golden, max_side=100).shape == (80, 100, 3)
