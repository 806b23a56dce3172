"""Optimisers and learning-rate policies."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fiducial.training.optim import build_optimizer, build_schedule, fused, lr_factor, settle


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


class TestFused:
    KINDS = [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD]

    def test_where_all_is_on_one_device_that_has_it(self):
        with FakeTensorMode():
            on_cpu, on_gpu, elsewhere = (torch.empty(2, device=device) for device in ("cpu", "cuda", "meta"))
        assert fused(torch.optim.AdamW, [on_gpu, on_gpu]) == fused(torch.optim.Adam, [on_cpu]) == {"fused": True}
        assert fused(torch.optim.SGD, [{"params": [on_gpu]}]) == {"fused": True}
        assert fused(torch.optim.AdamW, [on_gpu, on_cpu]) == fused(torch.optim.AdamW, [elsewhere]) == {}
        assert fused(torch.optim.Rprop, [on_gpu]) == {}, "which has no such kernel"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("first", [True, False])
    def test_goes_on_as_it_was_made(self, kind, first):
        """Fused or not, on the CPU: the same weights, also where the state is the other's."""
        options = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
        gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))

        def steps(weight, optimizer, some):
            for gradient in some:
                weight.grad = gradient.clone()
                optimizer.step()

        plain = nn.Parameter(torch.ones(5))
        steps(plain, kind([plain], **options), gradients)
        weight = nn.Parameter(torch.ones(5))
        before = kind([weight], fused=first or None, **options)
        steps(weight, before, gradients[:3])
        after = kind([weight], fused=None if first else True, **options)
        after.load_state_dict(before.state_dict())
        assert bool(after.param_groups[0]["fused"]) == first, "torch takes the other's switch"
        settle(after)
        assert bool(after.param_groups[0]["fused"]) != first
        steps(weight, after, gradients[3:])
        torch.testing.assert_close(weight, plain, rtol=1e-6, atol=1e-6)

    def test_optimizers_without_the_switch(self):
        settle(torch.optim.Rprop(parameters()))
