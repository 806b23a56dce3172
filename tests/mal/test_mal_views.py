"""What a report shows of an object: its surroundings, its box, its mask, its place."""

import numpy as np
import pytest

from mal.views import SIDE, View, close_up, whereabouts

GREY = np.full((100, 200, 3), 128, np.uint8)
BLUE, YELLOW = (86, 180, 233), (240, 228, 66)


def places_of(pixels, colour):
    """(left, top, right, bottom) of the pixels of a colour, all included."""
    rows, columns = np.nonzero((pixels == colour).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


class TestView:
    def test_a_square_around_the_box(self):
        view = View.around((80, 40, 100, 50), 200, 100)  # 20 wide, and 0.6 of it beside, and a pixel on each side
        assert (view.x, view.y, view.width, view.height) == (73, 28, 34, 34)

    @pytest.mark.parametrize("box", [(0, 0, 10, 10), (190, 90, 200, 100)])
    def test_stays_in_the_picture(self, box):
        view = View.around(box, 200, 100)
        assert view.width == view.height == 18
        assert view.cut(GREY).shape == (18, 18, 3)

    def test_of_a_box_as_large_as_the_picture(self):
        assert View.around((0, 0, 200, 100), 200, 100) == View(0, 0, 200, 100)


class TestCloseUp:
    def test_size_is_that_of_the_report_however_small_the_object(self):
        view = View.around((80, 40, 84, 44), 200, 100)
        assert close_up(GREY, view, (80, 40, 84, 44)).shape == (SIDE, SIDE, 3)

    def test_the_box_is_where_it_is(self):
        box = (80, 40, 100, 50)
        view = View.around(box, 200, 100)
        found = places_of(close_up(GREY, view, box), BLUE)
        assert np.array(found) / view.zoom == pytest.approx([7, 12, 27, 22], abs=0.2)

    def test_the_mask_is_outlined_and_tinted(self):
        mask = np.zeros((100, 200), bool)
        mask[42:48, 85:95] = True
        box = (80, 40, 100, 50)
        view = View.around(box, 200, 100)
        shown = close_up(GREY, view, box, mask)
        found = np.array(places_of(shown, YELLOW)) / view.zoom
        assert found == pytest.approx([85 - 73, 42 - 28, 95 - 73, 48 - 28], abs=0.3)
        middle = shown[round(17 * view.zoom), round(17 * view.zoom)]
        assert middle == pytest.approx(0.7 * 128 + 0.3 * np.array(YELLOW), abs=1)

    def test_an_empty_mask_leaves_the_picture_as_it_is(self):
        box = (80, 40, 100, 50)
        view = View.around(box, 200, 100)
        assert np.array_equal(close_up(GREY, view, box, np.zeros((100, 200), bool)), close_up(GREY, view, box))


def test_whereabouts():
    picture = np.full((2 * SIDE, 4 * SIDE, 3), 128, np.uint8)
    shown = whereabouts(picture, (2 * SIDE, SIDE, 4 * SIDE, 2 * SIDE))
    assert shown.shape == (SIDE // 2, SIDE, 3)
    assert places_of(shown, BLUE) == (SIDE // 2, SIDE // 4, SIDE - 1, SIDE // 2 - 1)
    assert (picture == 128).all()  # the picture itself is not drawn on
