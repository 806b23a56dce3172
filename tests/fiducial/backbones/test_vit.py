import copy
import pickle

import pytest
import torch
from torch import nn

from fiducial.backbones.vit import Freezable, Scope, SizeCache, patch_grid, resize_table, scale_table, table_side


class Made:
    """Counts its calls."""

    def __init__(self, parameter):
        self.parameter, self.calls = parameter, 0

    def __call__(self):
        self.calls += 1
        return self.parameter * 2


class TestSizeCache:
    @pytest.fixture
    def parameter(self):
        return nn.Parameter(torch.ones(3), requires_grad=False)

    def test_kept_per_key(self, parameter):
        cache, made = SizeCache(), Made(parameter)
        assert cache.get((2, 2), made, parameter) is cache.get((2, 2), made, parameter)
        cache.get((2, 3), made, parameter)
        assert made.calls == 2

    def test_not_kept_of_what_learns(self, parameter):
        cache, made = SizeCache(), Made(parameter)
        cache.get(1, made, parameter)
        assert cache.get(1, made, parameter.requires_grad_(True)).requires_grad
        with torch.no_grad():
            parameter.data.mul_(3)  # as fused optimizers: torch's version counter does not see it
            assert cache.get(1, made, parameter).tolist() == [6, 6, 6]

    @pytest.mark.parametrize("change", ["step", "load", "replace"])
    def test_follows_the_parameter(self, parameter, change):
        cache = SizeCache()
        with torch.no_grad():
            assert cache.get(1, Made(parameter), parameter).tolist() == [2, 2, 2]
            if change == "step":
                parameter.mul_(3)
            elif change == "load":
                parameter.copy_(torch.full((3,), 3.0))
            else:
                parameter = nn.Parameter(torch.full((3,), 3.0))
            assert cache.get(1, Made(parameter), parameter).tolist() == [6, 6, 6]

    def test_what_inference_mode_kept_serves_training(self, parameter):
        cache, made = SizeCache(), Made(parameter)
        with torch.inference_mode():
            cache.get(1, made, parameter)
        weight = torch.ones(3, requires_grad=True)
        (cache.get(1, made, parameter) * weight).sum().backward()
        assert made.calls == 1
        assert weight.grad.tolist() == [2, 2, 2]

    def test_copies_are_empty(self, parameter):
        cache = SizeCache()
        cache.get(1, Made(torch.ones(1)))
        for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            made = Made(torch.ones(1))
            other.get(1, made)
            assert made.calls == 1

    def test_holds_a_few_sizes_only(self):
        cache = SizeCache()
        for size in range(100):
            cache.get(size, Made(torch.ones(1)))
        assert len(cache._kept) <= 8


class TestFreezable:
    class Net(Freezable):
        def __init__(self):
            super().__init__()
            self.inner = Scope("a.b", nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
            self.outer = nn.Dropout()
            self.token = nn.Parameter(torch.ones(2))

    def test_frozen_parts_stay_in_eval(self):
        net = self.Net()
        net._freeze("inner.a.b", "token")
        net.train()
        assert net.training
        assert net.outer.training
        assert not any(part.training for part in net.inner.a.b.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())

    def test_the_whole(self):
        net = self.Net()
        net._freeze("")
        nn.Sequential(net).train()
        assert not any(part.training for part in net.modules())


class TestTables:
    def test_align_corners_keeps_the_corners(self):
        table = torch.arange(9.0).reshape(1, 9, 1)
        resized = resize_table(table, (5, 5), mode="bilinear", align_corners=True)
        assert resized[0, :5, 0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2])

    def test_scale_samples_by_the_factor(self):
        """4 -> 2 by 0.525: the first sample lies at 0.5 / 0.525 - 0.5 = 0.45238; around it are 0, 0, 1, 2.

        Cubic weights (a = -0.75) of 1 and 2 there: 1.25 s^3 - 2.25 s^2 + 1 = 0.53054 at distance s = 0.54762, and
        a (u^3 - 5 u^2 + 8 u - 4) = -0.08403 at u = 1.54762: 0.53054 - 2 * 0.08403 = 0.36248.
        """
        line = torch.arange(4.0).repeat(4).reshape(1, 16, 1)
        scaled = scale_table(line, (0.525, 0.525))
        assert scaled[0, 0, 0] == pytest.approx(0.36248, abs=2e-4)
        resized = resize_table(line, (2, 2), mode="bicubic", align_corners=False)
        assert abs(scaled - resized)[0, 0, 0] > 0.04

    def test_dtype_is_kept(self):
        table = torch.rand(1, 9, 2, dtype=torch.bfloat16)
        assert resize_table(table, (4, 5), mode="bicubic", align_corners=False).dtype == torch.bfloat16

    def test_side(self):
        assert table_side(torch.empty(1, 16, 1)) == 4
        with pytest.raises(ValueError, match="not square"):
            table_side(torch.empty(1, 15, 1))

    def test_grid(self):
        assert patch_grid(torch.empty(1, 3, 32, 64), 16) == (2, 4)
        with pytest.raises(ValueError, match="33×64"):
            patch_grid(torch.empty(1, 3, 33, 64), 16)
