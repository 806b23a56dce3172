"""Optimisers and learning-rate policies."""

import pytest
import torch
from torch import nn

from fiducial.training.optim import build_optimizer, build_schedule, lr_factor


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


class TestLrFactor:
    def test_linear_by_hand(self):
        assert [lr_factor("linear", epoch, 3) for epoch in range(3)] == [1.0, 0.75, 0.5]

    def test_step_by_hand(self):  # steps of 7 // 3 = 2 epochs
        factors = [lr_factor("step", epoch, 7) for epoch in range(7)]
        assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])

    @pytest.mark.parametrize("num_epochs", [1, 2])
    def test_step_lasts_at_least_one_epoch(self, num_epochs):
        assert [lr_factor("step", e, num_epochs) for e in range(num_epochs)] == [1.0, 0.1][:num_epochs]

    @pytest.mark.parametrize("num_epochs", [1, 10, 100])
    def test_linear_never_reaches_zero(self, num_epochs):
        assert lr_factor("linear", num_epochs - 1, num_epochs) == pytest.approx(2 / (num_epochs + 1))

    def test_unknown_policy(self):
        with pytest.raises(ValueError, match="cosine"):
            lr_factor("cosine", 0, 10)


class TestBuildOptimizer:
    @pytest.mark.parametrize(
        ("name", "want"),
        [
            ("sgd", 1 - 0.1 * (1 + 0.5 * 1)),  # gradient 1 and L2 decay
            ("adam", 1 - 0.1),  # the decay is in the gradient, whose size Adam removes
            ("adamw", 1 - 0.1 * 0.5 - 0.1),  # decay beside the unit step
        ],
    )
    def test_first_step_by_hand(self, name, want):
        (weight,) = weights = parameters()
        optimizer = build_optimizer(name, weights, lr=0.1, weight_decay=0.5)
        weight.sum().backward()
        optimizer.step()
        assert weight.tolist() == pytest.approx([want, want])

    def test_momentum_is_sgd_s(self):
        assert build_optimizer("sgd", parameters(), lr=1, weight_decay=0, momentum=0.7).defaults["momentum"] == 0.7

    @pytest.mark.parametrize("name", ["adam", "adamw"])
    def test_betas_are_adam_s(self, name):
        options = {"lr": 1, "weight_decay": 0}
        assert build_optimizer(name, parameters(), betas=(0.5, 0.6), **options).defaults["betas"] == (0.5, 0.6)
        assert build_optimizer(name, parameters(), **options).defaults["betas"] == (0.9, 0.999)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="lion"):
            build_optimizer("lion", parameters(), lr=1, weight_decay=0)


def test_schedule_steps_once_per_epoch():
    optimizer = build_optimizer("sgd", parameters(), lr=0.5, weight_decay=0)
    schedule = build_schedule(optimizer, "linear", 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.2])
