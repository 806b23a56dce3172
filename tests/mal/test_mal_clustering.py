"""The clustering score: worked by hand, and its bounds."""

import math

import numpy as np
import pytest
import torch

from mal.clustering import cluster_score, on_grid


def of(rows, inside):
    """Features as rows of cells, one after the other."""
    return cluster_score(torch.tensor(rows, dtype=torch.float32).T[:, None], torch.tensor(inside)[None])


def test_by_hand():
    """Object: (1, 0) and (0, 1), each 2 - sqrt 2 from (1, 1) / sqrt 2; background: one cell, its own centre."""
    assert of([[3, 0], [0, 5], [1, 1]], [True, True, False]) == pytest.approx(2 * (2 - math.sqrt(2)) / 3)


def test_one_direction_for_each_class_is_the_best():
    assert of([[2, 0], [9, 0], [0, 1], [0, 4]], [True, True, False, False]) == pytest.approx(0, abs=1e-6)


def test_lengths_do_not_count():
    rows, inside = torch.randn(5, 3), [True, False, True, True, False]
    assert of((rows * torch.rand(5, 1).add(0.1)).tolist(), inside) == pytest.approx(of(rows.tolist(), inside), rel=1e-5)


@pytest.mark.parametrize("inside", [True, False])
def test_one_class_alone(inside):
    assert of([[1, 0], [0, 1]], [inside, inside]) == pytest.approx(2 - math.sqrt(2))


def test_better_for_the_true_mask_than_for_another():
    true = torch.zeros(8, 8, dtype=torch.bool)
    true[2:6, 2:6] = True
    feature = torch.where(true, 1.0, -1.0)[None] * torch.tensor([1.0, 2.0])[:, None, None]
    feature = feature + 0.2 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert cluster_score(feature, true) < 0.2 < cluster_score(feature, true.roll(3, 1))


def test_cells_that_are_half_filled():
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :2] = 1  # whole
    mask[0, 2:] = 7  # half
    mask[3, 3] = 1  # a quarter
    assert on_grid(mask, 2, 2).tolist() == [[True, True], [False, False]]
