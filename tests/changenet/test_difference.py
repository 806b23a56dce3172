"""Difference maps of two pyramids."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from changenet.difference import (
    DifferenceBlock,
    DifferencePyramid,
    PixelLinear,
    check_same_shape,
    fuse,
    fusion_layer,
    resize,
    top_down,
)

CHANNELS = (3, 4, 5, 5)


def pyramid(seed: int, sizes=((16, 24), (8, 12), (4, 6), (4, 6))) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(CHANNELS, sizes, strict=True)]


def model(modules_used: int = 4) -> DifferencePyramid:
    torch.manual_seed(0)
    return DifferencePyramid(CHANNELS, 6, modules_used=modules_used).eval()


class TestResize:
    def test_by_hand(self):  # halves of a pixel to either side, edges kept
        got = resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4))
        assert got.flatten().tolist() == [0, 1, 3, 4]

    def test_same_size_is_the_same_tensor(self):
        x = torch.rand(1, 1, 3, 4)
        assert resize(x, (3, 4)) is x


def test_top_down_by_hand():
    maps = [torch.ones(1, 1, 4, 4), torch.full((1, 1, 2, 2), 10.0), torch.full((1, 1, 2, 2), 100.0)]
    assert [x.unique().tolist() for x in top_down(maps)] == [[111], [110], [100]]


class TestFuse:
    """Against the convolution of the joined maps, the coarsest first."""

    def layer_and_maps(self):
        torch.manual_seed(0)
        layer = fusion_layer(4 * 6, 6).double()
        return layer, [torch.randn(2, 6, 16 // s, 24 // s, dtype=torch.float64) for s in (1, 2, 4, 8)]

    def joined(self, layer, maps, size):
        return layer(torch.cat([F.interpolate(x, size=size, mode="bilinear") for x in reversed(maps)], 1))

    @pytest.mark.parametrize("size", [(16, 24), (32, 48)])  # as large as the finest map, and larger
    def test_values(self, size):
        layer, maps = self.layer_and_maps()
        layer.eval()
        assert torch.allclose(fuse(layer, maps, size), self.joined(layer, maps, size), rtol=1e-12, atol=1e-12)

    def test_gradients(self):
        layer, maps = self.layer_and_maps()
        grads = [
            torch.autograd.grad(fused.square().sum(), list(layer.parameters()))
            for fused in (fuse(layer, maps, (16, 24)), self.joined(layer, maps, (16, 24)))
        ]
        for mine, theirs in zip(*grads, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def test_pixel_linear_is_a_1x1_convolution():
    layer, x = PixelLinear(3, 5), torch.randn(2, 3, 4, 6)
    want = F.conv2d(x, layer.proj.weight[:, :, None, None], layer.proj.bias)
    assert torch.allclose(layer(x), want, atol=1e-6)


class TestDifferenceBlock:
    def test_halves_add_up(self):
        block = DifferenceBlock(6).eval().double()
        test, golden = torch.randn(2, 2, 6, 5, 7, dtype=torch.float64)
        got = block.finish(block.test_half(test) + block.golden_half(golden))
        assert torch.allclose(got, block(torch.cat((test, golden), 1)), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("channels", [3, 6, 9])  # in one convolution with the projection, or after it
    def test_halves_of_a_projected_map(self, channels):
        torch.manual_seed(0)
        block, project = DifferenceBlock(6).double(), PixelLinear(channels, 6).double()
        x = torch.randn(2, channels, 5, 7, dtype=torch.float64, requires_grad=True)
        inputs = [x, block[0].weight, *project.parameters()]
        for half in (block.test_half, block.golden_half):
            results = []
            for output in (half(x, project), half(project(x))):
                results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
            for mine, theirs in zip(*results, strict=True):
                assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10)

    def test_quantized_projections_are_called(self, monkeypatch):
        block, project = DifferenceBlock(6), PixelLinear(3, 6)
        called = []
        project.register_forward_hook(lambda *_: called.append(1))
        block.test_half(torch.randn(1, 3, 4, 4), project)
        assert not called
        monkeypatch.setattr("changenet.difference.is_traceable_wrapper_subclass", lambda weight: True)
        block.test_half(torch.randn(1, 3, 4, 4), project)
        assert called

    def test_order_matters(self):
        block, (a, b) = DifferenceBlock(6).eval(), torch.randn(2, 1, 6, 5, 7)
        assert not torch.allclose(block(torch.cat((a, b), 1)), block(torch.cat((b, a), 1)))

    def test_keys(self):
        names = ("0.weight", "0.bias", "2.weight", "2.running_mean", "3.weight", "3.bias")
        assert set(names) <= set(DifferenceBlock(4).state_dict())


class TestDifferencePyramid:
    def test_against_the_explicit_form(self):
        net, test, golden = model(), pyramid(1), pyramid(2)
        diff = {}
        for scale in (4, 3, 2, 1):
            linear, block = getattr(net, f"linear_c{scale}"), getattr(net, f"diff_c{scale}")
            diff[scale] = block(torch.cat((linear(test[scale - 1]), linear(golden[scale - 1])), 1))
        up2 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        d3 = diff[3] + diff[4]  # both of stride 16
        d2 = diff[2] + up2(d3)
        want = (diff[1] + up2(d2), d2, d3, diff[4])
        got = net.differences(net.test_halves(test), net.golden_halves(golden))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))

    @pytest.mark.parametrize("used", [1, 2, 3])
    def test_fewer_modules_are_the_coarsest(self, used):
        few, all_four, test, golden = model(used), model(), pyramid(1), pyramid(2)
        got = few.differences(few.test_halves(test), few.golden_halves(golden))
        want = all_four.differences(all_four.test_halves(test), all_four.golden_halves(golden))
        assert list(few.state_dict()) == list(all_four.state_dict())
        assert len(got) == used
        assert all(torch.equal(a, b) for a, b in zip(got, want[-used:], strict=True))

    def test_unused_layers_do_not_train(self):
        trainable = {name.split(".")[0] for name, p in model(2).named_parameters() if p.requires_grad}
        assert trainable == {"linear_c4", "linear_c3", "diff_c4", "diff_c3"}

    def test_one_test_against_several_goldens(self):
        net, test, goldens = model(), pyramid(1), [pyramid(2), pyramid(3)]
        halves = [net.golden_halves(golden) for golden in goldens]
        stacked = tuple(torch.stack(scale, 1) for scale in zip(*halves, strict=True))
        test_halves = net.test_halves(test)
        got = net.differences([x[:, None] for x in test_halves], stacked)
        for index, half in enumerate(halves):
            for a, b in zip(got, net.differences(test_halves, half), strict=True):
                assert torch.allclose(a.unflatten(0, (2, 2))[:, index], b, atol=1e-5)


class TestRefuses:
    def test_other_channels(self):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\), found shape \(1, 4, 2, 2\)"):
            PixelLinear(3, 5)(torch.zeros(1, 4, 2, 2))
        with pytest.raises(ValueError, match=r"\(B, 12, H, W\), found shape \(1, 6, 2, 2\)"):
            DifferenceBlock(6)(torch.zeros(1, 6, 2, 2))

    def test_another_number_of_maps(self):
        for halves in (model().test_halves, model().golden_halves):
            with pytest.raises(ValueError, match="4 maps is needed, found 3"):
                halves(pyramid(1)[:3])

    def test_pairs_of_two_shapes(self):
        check_same_shape(a=torch.zeros(2, 3, 4, 4), b=torch.zeros(2, 3, 4, 4))
        for other in (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 5)):
            with pytest.raises(ValueError, match=r"a and b must .* found \(2, 3, 4, 4\) and \("):
                check_same_shape(a=torch.zeros(2, 3, 4, 4), b=other)
