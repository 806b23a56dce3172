"""How two feature pyramids become maps of their difference: the part of the decoder that classify and segment share.

Dims: B batch, C backbone channels, E decoder channels, H and W rows and columns. Pyramids run from fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fiducial.backbones.recompute import norm_again
from fiducial.backbones.sizes import shape_of
from fiducial.ops.linear import Linear

__all__ = [
    "DifferenceBlock",
    "DifferencePyramid",
    "PixelLinear",
    "Pyramid",
    "check_same_shape",
    "fuse",
    "fusion_layer",
    "resize",
    "top_down",
]

Pyramid = tuple[Tensor, ...]
"""Maps ``(B, ., H, W)`` from fine to coarse; slices and stacks along the batch."""


def check_same_shape(**images: Tensor) -> None:
    """Raises: ValueError, which names both, unless the two images have one shape ``(B, 3, H, W)``."""
    (first, x), (second, y) = images.items()
    if x.ndim != 4 or shape_of(x) != shape_of(y):
        found = f"{shape_of(x)} and {shape_of(y)}"
        raise ValueError(f"{first} and {second} must both be (B, 3, H, W), of one shape, found {found}")


def resize(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, ``align_corners=False``; the tensor itself when it has that ``(height, width)`` already."""
    if tuple(x_BCHW.shape[-2:]) == tuple(size):
        return x_BCHW
    return F.interpolate(x_BCHW, size=tuple(size), mode="bilinear", align_corners=False)


def top_down(maps: Sequence[Tensor]) -> Pyramid:
    """Add to every map the sum of all coarser ones, resized to it step by step."""
    sums = [maps[-1]]
    for finer in reversed(maps[:-1]):
        sums.append(finer + resize(sums[-1], finer.shape[-2:]))
    return tuple(reversed(sums))


def fusion_layer(in_channels: int, out_channels: int) -> nn.Sequential:
    """1×1 convolution and batch norm, without activation."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))


class PixelLinear(nn.Module):
    """One linear layer for every pixel: ``(B, C, H, W)`` to ``(B, E, H, W)``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = Linear(in_channels, out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, E, H, W)``, of any range. Raises: ValueError for another number of channels."""
        _check_channels(x_BCHW, self.proj.in_features)
        x_BHWE: Tensor = self.proj(x_BCHW.permute(0, 2, 3, 1))
        return x_BHWE.permute(0, 3, 1, 2)


class DifferenceBlock(nn.Sequential):
    """Conv3×3 (2E to E), ReLU, BatchNorm, conv3×3, ReLU on ``cat((test, golden), dim=1)``.

    The first convolution is the sum of one over the test and one over the golden half of its input, so that the
    golden's can be kept: ``finish(test_half(test) + golden_half(golden))`` is the block.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.width = width

    def forward(self, pair_BCHW: Tensor) -> Tensor:
        """``(B, 2E, H, W)`` to ``(B, E, H, W)``, >= 0. Raises: ValueError for another number of channels."""
        _check_channels(pair_BCHW, 2 * self.width)
        return self.finish(self[0](pair_BCHW))

    def test_half(self, test_BCHW: Tensor, project: PixelLinear | None = None) -> Tensor:
        """The test's part of the first convolution, with its bias; of what ``project`` makes of the map, if given."""
        conv = cast(nn.Conv2d, self[0])
        return _half(test_BCHW, project, conv.weight[:, : self.width], conv.bias)

    def golden_half(self, golden_BCHW: Tensor, project: PixelLinear | None = None) -> Tensor:
        """The golden's part of the first convolution."""
        conv = cast(nn.Conv2d, self[0])
        return _half(golden_BCHW, project, conv.weight[:, self.width :], None)

    def finish(self, sum_BEHW: Tensor) -> Tensor:
        """What follows the first convolution."""
        relu, norm, conv, last = list(self)[1:]
        out_BEHW: Tensor = last(norm_again(norm, relu(sum_BEHW), conv))
        return out_BEHW


def _half(x_BCHW: Tensor, project: PixelLinear | None, weight_EF33: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution of padding 1, after ``project``: both in one convolution where that multiplies less."""
    if project is None:
        return F.conv2d(x_BCHW, weight_EF33, bias, padding=1)
    channels, width = project.proj.in_features, project.proj.out_features
    is_special = is_traceable_wrapper_subclass(project.proj.weight)  # quantized weights know linear layers alone
    if 9 * channels >= channels + 9 * width or is_special:
        return F.conv2d(project(x_BCHW), weight_EF33, bias, padding=1)
    _check_channels(x_BCHW, channels)
    tap_E33F = weight_EF33.permute(0, 2, 3, 1)
    weight_ECHW = (tap_E33F @ project.proj.weight).permute(0, 3, 1, 2)
    half_BEHW = F.conv2d(x_BCHW, weight_ECHW, bias, padding=1)
    # the projection's bias is in every pixel but not beyond the border, where its output is padded with zeros
    everywhere = x_BCHW.new_ones(1, 1, *x_BCHW.shape[-2:])
    return half_BEHW + F.conv2d(everywhere, (tap_E33F @ project.proj.bias)[:, None], padding=1)


class DifferencePyramid(nn.Module):
    """Projects two pyramids with shared weights and compares them scale by scale, coarse to fine.

    ``modules_used``: how many of the coarsest scales count; the layers of the others exist for the checkpoint's keys
    and are neither run nor trained.
    """

    def __init__(self, channels: Sequence[int], width: int, *, modules_used: int = 4) -> None:
        super().__init__()
        self.num_maps = len(channels)
        self.scales = range(len(channels) - modules_used + 1, len(channels) + 1)
        for scale in range(len(channels), 0, -1):
            self.add_module(f"linear_c{scale}", PixelLinear(channels[scale - 1], width))
        for scale in range(len(channels), 0, -1):
            self.add_module(f"diff_c{scale}", DifferenceBlock(width))
        for scale in range(1, self.scales.start):
            self._linear(scale).requires_grad_(False)
            self._difference(scale).requires_grad_(False)

    def test_halves(self, pyramid: Sequence[Tensor]) -> Pyramid:
        """All that the maps used need of the tested images, ``(B, E, H, W)`` each.

        Raises: ValueError for another number of maps or of a map's channels.
        """
        self._check_maps(pyramid)
        return tuple(self._difference(s).test_half(pyramid[s - 1], self._linear(s)) for s in self.scales)

    def golden_halves(self, pyramid: Sequence[Tensor]) -> Pyramid:
        """The same of the goldens."""
        self._check_maps(pyramid)
        return tuple(self._difference(s).golden_half(pyramid[s - 1], self._linear(s)) for s in self.scales)

    def differences(self, test_halves: Sequence[Tensor], golden_halves: Sequence[Tensor]) -> Pyramid:
        """The difference maps of the scales used, coarser ones added in.

        The halves of a scale may broadcast, to ``(..., E, H, W)``; the maps are ``(product of ..., E, H, W)``.
        """
        maps = []
        for scale, test, golden in zip(self.scales, test_halves, golden_halves, strict=True):
            maps.append(self._difference(scale).finish((test + golden).flatten(0, -4)))
        return top_down(maps)

    def _check_maps(self, pyramid: Sequence[Tensor]) -> None:
        if len(pyramid) != self.num_maps:
            raise ValueError(f"a pyramid of {self.num_maps} maps is needed, found {len(pyramid)}")

    def _linear(self, scale: int) -> PixelLinear:
        module: PixelLinear = getattr(self, f"linear_c{scale}")
        return module

    def _difference(self, scale: int) -> DifferenceBlock:
        module: DifferenceBlock = getattr(self, f"diff_c{scale}")
        return module


def _check_channels(x_BCHW: Tensor, wanted: int) -> None:
    if x_BCHW.ndim != 4 or shape_of(x_BCHW)[1] != wanted:
        raise ValueError(f"a map must be (B, {wanted}, H, W), found shape {shape_of(x_BCHW)}")


def fuse(layer: nn.Sequential, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """A :func:`fusion_layer` of all maps, resized to ``size`` and joined along the channels, the coarsest first.

    A 1×1 convolution of joined maps is a sum of one per map, and it commutes with bilinear resizing: every map is
    convolved at its own size, and the joined map (as many times as large as the result) is never made.
    """
    conv, norm = cast(nn.Conv2d, layer[0]), layer[1]
    weights = reversed(torch.split(conv.weight, maps[0].shape[1], dim=1))
    finest, *coarser = zip(maps, weights, strict=True)
    fused_BEHW = resize(F.conv2d(*finest, conv.bias), size)
    for x_BEHW, weight in coarser:
        fused_BEHW = fused_BEHW + resize(F.conv2d(x_BEHW, weight), size)
    normed_BEHW: Tensor = norm(fused_BEHW)
    return normed_BEHW
