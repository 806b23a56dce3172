import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

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

    def test_as_by_distances_of_all_pixels(self):
        rng = np.random.default_rng(0)
        for _ in range(40):
            side, diagonal = int(rng.integers(3, 80)), rng.uniform(1, 300)
            smooth = gaussian_filter(rng.standard_normal((2, side, side)), (0, 4, 4))
            pred, target = smooth[0] > 0, smooth[0] + 0.3 * smooth[1] > 0
            edges = [np.pad(mask, 1) ^ binary_dilation(np.pad(mask, 1)) for mask in (pred, target)]
            if not pred.any() or not target.any():
                continue
            near = max(1, 0.02 * diagonal)
            precision, recall = (
                (distance_transform_edt(~other)[edge] <= near).mean() for edge, other in (edges, edges[::-1])
            )
            wanted = 2 * precision * recall / (precision + recall) if precision + recall else 0
            assert boundary_f(pred, target, diagonal=diagonal) == pytest.approx(wanted, abs=1e-12)
