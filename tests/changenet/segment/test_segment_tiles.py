from itertools import pairwise

import numpy as np
import pytest

from changenet.segment.tiles import Blend, Window, blend, cut, draw_window, windows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


SIZES = [(10, 10, 4, 1), (7, 13, 5, 2), (3, 9, 4, 0), (4, 4, 4, 3), (2, 3, 8, 4), (1, 20, 6, 5)]


class TestWindows:
    def test_hand_computed(self):  # steps of 3; the last one moves in to end with the image
        assert [w.left for w in windows(4, 11, tile=4, overlap=1)] == [0, 3, 6, 7]
        assert windows(4, 4, 4, 0) == [Window(0, 0, 4, 4)]
        assert windows(2, 5, 4, 2) == [Window(0, 0, 4, 4), Window(0, 1, 4, 4)]

    @pytest.mark.parametrize(("height", "width", "tile", "overlap"), SIZES)
    def test_cover_everything_with_the_overlap(self, height, width, tile, overlap):
        found = windows(height, width, tile, overlap)
        times = np.zeros((height, width), int)
        for window in found:
            times[window.slices] += 1
        assert times.min() >= 1
        assert len(set(found)) == len(found)
        tops, lefts = (sorted({getattr(w, side) for w in found}) for side in ("top", "left"))
        assert all(b - a <= tile - overlap for starts in (tops, lefts) for a, b in pairwise(starts))
        assert tops[-1] == max(0, height - tile)

    @pytest.mark.parametrize(("size", "overlap"), [((8, 8), 4), ((8, 8), -1), ((0, 8), 1)])
    def test_what_cannot_be(self, size, overlap):
        with pytest.raises(ValueError, match=r"overlap must|an image of"):
            windows(*size, 4, overlap)


class TestCut:
    def test_inside_is_a_view(self):
        image = np.arange(48).reshape(4, 4, 3)
        assert np.shares_memory(cut(image, Window(1, 1, 2, 2)), image)

    def test_mirrors_at_the_border(self):
        row = np.array([[1, 2, 3]])
        assert cut(row, Window(0, 0, 1, 5)).tolist() == [[1, 2, 3, 2, 1]]
        assert cut(row, Window(0, 0, 2, 8)).tolist() == [[1, 2, 3, 2, 1, 2, 3, 2]] * 2

    def test_fill_for_masks(self):
        mask = np.ones((2, 2), np.uint8)
        assert cut(mask, Window(0, 0, 3, 3), fill=255).tolist() == [[1, 1, 255], [1, 1, 255], [255, 255, 255]]


class TestDrawWindow:
    def test_every_place_inside_and_no_other(self, rng):
        drawn = {draw_window(rng, 5, 6, 4) for _ in range(300)}
        assert drawn == {Window(top, left, 4, 4) for top in (0, 1) for left in (0, 1, 2)}
        assert draw_window(rng, 3, 2, 4) == Window(0, 0, 4, 4)

    @pytest.mark.parametrize(("pixel", "tops", "lefts"), [((0, 5), {0}, {2}), ((4, 3), {1}, {0, 1, 2})])
    def test_around_a_pixel(self, rng, pixel, tops, lefts):
        drawn = {draw_window(rng, 5, 6, 4, around=pixel) for _ in range(200)}
        assert drawn == {Window(top, left, 4, 4) for top in tops for left in lefts}


class TestBlend:
    @pytest.mark.parametrize(("height", "width", "tile", "overlap"), SIZES)
    def test_identity(self, rng, height, width, tile, overlap):
        image = rng.standard_normal((height, width, 3)).astype(np.float32)
        parts = [(w, cut(image, w).transpose(2, 0, 1)) for w in windows(height, width, tile, overlap)]
        whole = blend(parts, 3, height, width)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole, image.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)

    def test_constant(self):
        parts = [(w, np.full((1, 64, 64), 0.3, np.float32)) for w in windows(150, 200, 64, 20)]
        np.testing.assert_allclose(blend(parts, 1, 150, 200), 0.3, rtol=1e-6)

    def test_hand_computed(self):  # sin²(π/8) = 0.146447, sin²(3π/8) = 0.853553
        inner, outer = 0.853553, 0.146447
        parts = [(Window(0, 0, 1, 4), np.zeros((1, 1, 4))), (Window(0, 2, 1, 4), np.ones((1, 1, 4)))]
        expected = [0, 0, outer / (inner + outer), inner / (inner + outer), 1, 1]
        np.testing.assert_allclose(blend(parts, 1, 1, 6)[0, 0], expected, rtol=1e-5)

    def test_is_smooth_where_windows_disagree(self, rng):
        parts = [(w, np.full((1, 32, 32), rng.random(), np.float32)) for w in windows(32, 128, 32, 16)]
        assert np.abs(np.diff(blend(parts, 1, 32, 128)[0, 16])).max() < 0.12  # butted tiles jump by up to 1

    def test_hands_rows_out_as_early_as_it_can(self):
        blending, finished = Blend(1, 100, 8), []
        for window in windows(100, 8, 8, 2):
            finished.append(blending.add(window, np.ones((1, 8, 8), np.float32)).shape[1])
            assert blending._weight_hW.shape[0] <= 8
        assert finished[:4] == [0, 6, 6, 6]
        assert sum(finished) + blending.finish().shape[1] == 100

    def test_wrong_use(self):
        blending = Blend(2, 8, 8)
        with pytest.raises(ValueError, match="must be"):
            blending.add(Window(0, 0, 4, 4), np.zeros((1, 4, 4)))
        blending.add(Window(0, 0, 4, 4), np.zeros((2, 4, 4)))
        with pytest.raises(ValueError, match="no window covers"):  # columns 4 .. 7 were left out
            blending.add(Window(4, 0, 4, 4), np.zeros((2, 4, 4)))
        with pytest.raises(ValueError, match="end at row"):
            blend([(Window(0, 0, 4, 8), np.zeros((1, 4, 8)))], 1, 8, 8)
        with pytest.raises(ValueError, match="row by row"):
            blend([(Window(top, 0, 4, 8), np.zeros((1, 4, 8))) for top in (0, 4, 0)], 1, 8, 8)
