import math

import numpy as np
import pytest

from mal.boundary import boundary_f
from mal.metrics import ClassIou


class TestClassIou:
    def test_mean_over_classes_of_the_mean_of_their_objects(self):
        metric = ClassIou(3)
        for category, iou in ((0, 0.5), (0, 0.7), (2, 0.9)):
            metric.add(category, iou, area=5000)
        assert metric.mean() == pytest.approx((0.6 + 0.9) / 2, abs=1e-5)
        assert metric.kpis()["mIoU_medium"] == pytest.approx(0.75, abs=1e-5)
        assert math.isnan(metric.kpis()["mIoU_small"])
        assert metric.by_class() == {0: (2, pytest.approx(0.6)), 2: (1, pytest.approx(0.9))}

    @pytest.mark.parametrize(
        ("area", "size"), [(1, "small"), (1024, "small"), (1025, "medium"), (9216, "medium"), (9217, "large")]
    )
    def test_limits_belong_to_the_smaller_side(self, area, size):
        metric = ClassIou(1)
        metric.add(0, 0.5, area)
        assert metric.mean(size) == pytest.approx(0.5, abs=1e-5)

    def test_as_tao_counts_sizes(self):
        """An object's IoU goes to every class in its batch: of classes 3, 5 and 7, one object of 0.8 is in each."""
        metric = ClassIou(8)
        metric.add(5, 0.8, 100, sized_as=[3, 5, 7])
        metric.add(3, 0.2, 100, sized_as=[3])
        assert metric.mean("small") == pytest.approx((0.5 + 0.8 + 0.8) / 3, abs=1e-5)
        assert metric.mean() == pytest.approx(0.5, abs=1e-5)

    def test_nothing(self):
        assert all(math.isnan(value) for value in ClassIou(2).kpis().values())


class TestBoundary:
    square = np.zeros((40, 40), bool)
    square[10:30, 10:30] = True

    def test_equal_masks(self):
        assert boundary_f(self.square, self.square, diagonal=28) == 1

    def test_a_shift_within_the_tolerance(self):
        assert boundary_f(self.square, np.roll(self.square, 1, 0), diagonal=28) == 1

    def test_a_shift_beyond_it(self):
        assert 0.3 < boundary_f(self.square, np.roll(self.square, 6, 0), diagonal=28) < 0.8

    def test_empty_masks(self):
        empty = np.zeros((5, 5), bool)
        assert boundary_f(empty, empty, diagonal=5) == 1
        assert boundary_f(empty, ~empty, diagonal=5) == 0
