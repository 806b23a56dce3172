import numpy as np
import pytest

from changenet.segment.counts import Counts, change_counts, class_counts

MATRIX = np.array([[2, 1, 0], [0, 1, 1], [1, 0, 1]])


class TestCounts:
    def test_hand_computed(self):
        counts = Counts(tp=3, fp=1, fn=2)
        assert (counts.precision, counts.recall, counts.iou) == (3 / 4, 3 / 5, 3 / 6)
        assert counts.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))

    def test_undefined(self):
        assert Counts(0, 0, 0).f1 is Counts(0, 0, 5).precision is Counts(0, 5, 0).recall is None
        assert Counts(0, 1, 0).f1 == 0


def test_of_a_matrix():
    assert class_counts(MATRIX) == [Counts(2, 1, 1), Counts(1, 1, 1), Counts(1, 1, 1)]
    assert change_counts(MATRIX) == Counts(2, 2, 2)
