"""Whether embeddings have become one."""

import pytest
import torch

from mlrecog.health import collapse, collapsed


def test_opposite_vectors():
    health = collapse(torch.tensor([[2.0, 0.0], [-5.0, 0.0]]))
    assert float(health.mean_distance) == pytest.approx(2.0)
    assert float(health.spread) == pytest.approx(1.0)


def test_right_angles():
    health = collapse(torch.eye(3))
    assert float(health.mean_distance) == pytest.approx(2**0.5)
    assert float(health.spread) == pytest.approx((1 - 1 / 3) ** 0.5)


def test_one_direction():
    health = collapse(torch.ones(8, 4) * torch.arange(1, 9)[:, None])
    assert float(health.mean_distance) < 1e-3
    assert "have become one" in collapsed(float(health.mean_distance))
    assert collapsed(0.2) == ""
