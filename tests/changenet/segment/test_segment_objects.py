import numpy as np
import pytest

from changenet.segment.objects import ObjectCounts, connected_components, match_objects


def _mask(text):
    return np.array([[c == "#" for c in line] for line in text.split()])


TRUE = _mask("""
    ####....##
    ####....##
    ..........
    #.........
    ....######
""")
PREDICTED = _mask("""
    ###.......
    ###.....#.
    ..........
    ......##..
    ....######
""")


class TestLabelObjects:
    def test_corners_connect(self):
        label, num = connected_components(_mask("#.. .#. ..# #.."))
        assert num == 2
        assert label.dtype == np.int32
        assert label.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0]]

    def test_nothing(self):
        assert connected_components(np.zeros((3, 3), bool))[1] == 0


class TestMatchObjects:
    def test_hand_computed(self):
        # IoU 6/8: matched; 1/4: missed, but touched; a pixel missed; 6/8: matched, with two pixels too many
        assert match_objects(PREDICTED, TRUE) == ObjectCounts(matched=2, missed=2, false=1, touched=3, stray=0)
        rates = match_objects(PREDICTED, TRUE).rates
        assert (rates.precision, rates.recall, rates.f1) == (2 / 3, 2 / 4, 4 / 7)

    def test_strictness(self):
        assert match_objects(PREDICTED, TRUE, min_iou=0.8).matched == 0
        assert match_objects(PREDICTED, TRUE, min_iou=0.75).matched == 2
        assert match_objects(PREDICTED, TRUE, min_iou=0.25) == ObjectCounts(3, 1, 0, 3, 0)

    def test_specks_are_neither_missed_nor_false(self):
        assert match_objects(PREDICTED, TRUE, min_area=2) == ObjectCounts(2, 1, 0, 3, 0)

    def test_a_small_prediction_finds_a_larger_object(self):
        assert match_objects(_mask("##.."), _mask("###."), min_area=3) == ObjectCounts(1, 0, 0, 1, 0)

    def test_a_prediction_of_an_ignored_speck_is_ignored(self):
        assert match_objects(_mask("###."), _mask("##.."), min_area=3) == ObjectCounts()

    def test_each_object_is_used_once(self):  # each half has 4 of the 10 pixels
        halves, whole = _mask("##.## ##.##"), _mask("##### #####")
        assert match_objects(halves, whole, min_iou=0.4) == ObjectCounts(1, 0, 1, 1, 0)
        assert match_objects(whole, halves, min_iou=0.4) == ObjectCounts(1, 1, 0, 2, 0)

    def test_the_better_partner_wins(self):
        true = _mask("####### ......# #######")  # one U-shaped object
        predicted = _mask("##..... ....... #######")
        assert match_objects(predicted, true, min_iou=0.1) == ObjectCounts(1, 0, 1, 1, 0)

    def test_ignored_pixels(self):
        ignored = np.zeros_like(TRUE)
        ignored[:, :4] = True
        assert match_objects(PREDICTED, TRUE, ignored_HW=ignored) == ObjectCounts(1, 1, 1, 2, 0)

    def test_symmetry(self):
        rng = np.random.default_rng(0)
        a, b = rng.random((2, 40, 40)) < 0.3
        forth, back = match_objects(a, b), match_objects(b, a)
        assert (forth.matched, forth.missed, forth.false) == (back.matched, back.false, back.missed)

    def test_same_masks(self):
        a = np.random.default_rng(0).random((40, 40)) < 0.3
        num = connected_components(a)[1]
        assert match_objects(a, a) == ObjectCounts(matched=num, touched=num)

    def test_nothing_at_all(self):
        none = np.zeros((4, 4), bool)
        assert match_objects(none, none) == ObjectCounts()
        assert match_objects(none, none).rates.f1 is None
        assert match_objects(none, ~none) == ObjectCounts(missed=1)
        assert match_objects(~none, none) == ObjectCounts(false=1, stray=1)

    def test_sums(self):
        assert ObjectCounts(1, 2, 3, 4, 5) + ObjectCounts(1, 1, 1, 1, 1) == ObjectCounts(2, 3, 4, 5, 6)
        assert ObjectCounts(3, 2).num_true == 5

    def test_wrong_use(self):
        with pytest.raises(ValueError, match="masks of"):
            match_objects(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
        with pytest.raises(ValueError, match="min_iou"):
            match_objects(TRUE, TRUE, min_iou=0)
