"""The mask network: a crop around a box in, the logits of the object's mask out."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fiducial.backbones.names import build_map, map_info
from fiducial.backbones.vit import MapBackbone

__all__ = ["LIMITS", "MaskNetwork", "build_labeler", "size_bucket"]

LIMITS = (32.0**2, 96.0**2)
"""Areas of boxes, in pixels, up to which they are small, and medium; COCO's."""
_FEATURE_SCALES = (0.5, 1.0, 2.0)
"""How much finer the features of small, medium and large boxes are looked at."""


def size_bucket(area: Tensor) -> Tensor:
    """0 small, 1 medium, 2 large, for areas of boxes in pixels; a limit belongs to the smaller side."""
    small, medium = LIMITS
    return (area > small).long() + (area > medium).long()


class KernelHead(nn.Module):
    """The object as one vector: the mean of the map through two layers. ``(B, D, h, w)`` to ``(B, C)``."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp1, self.mlp2 = nn.Linear(in_dim, out_dim), nn.Linear(out_dim, out_dim)

    def forward(self, feature_BDhw: Tensor) -> Tensor:
        out: Tensor = self.mlp2(F.relu(self.mlp1(feature_BDhw.mean((2, 3)))))
        return out


class ConvBlock(nn.Module):
    """3x3 convolution and ReLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class ValueHead(nn.Module):
    """The picture as a map of vectors, ``ratio`` times finer than its input. ``(B, D, h, w)`` to ``(B, C, H, W)``."""

    _UPSAMPLED_BEFORE = 3

    def __init__(self, in_dim: int, hidden: int, out_dim: int, *, num_convs: int, ratio: float) -> None:
        super().__init__()
        if num_convs <= self._UPSAMPLED_BEFORE:
            raise ValueError(f"the mask head needs at least {self._UPSAMPLED_BEFORE + 1} convolutions, got {num_convs}")
        dims = [in_dim, *[hidden] * (num_convs - 1), out_dim]
        self.convs = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(dims))
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        for place, conv in enumerate(self.convs):
            if place == self._UPSAMPLED_BEFORE:
                x = _resized(x, int(x.shape[2] * self.ratio), int(x.shape[3] * self.ratio))
            x = conv(x)
        return x


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


class MaskNetwork(nn.Module):
    """One of the two equal networks, student or teacher.

    ``adjust_scale``: look at the features finer where the box is larger (:data:`LIMITS`); else all alike, resized by
    ``scale_before``. ``scale``: how much the mask head refines them, 2 with ``adjust_scale``.
    """

    def __init__(
        self,
        backbone: MapBackbone,
        embed_dim: int,
        *,
        hidden: int = 256,
        out_dim: int = 256,
        num_convs: int = 4,
        scale: float = 2.0,
        scale_before: float = 1.0,
        adjust_scale: bool = True,
    ) -> None:
        super().__init__()
        if adjust_scale and (scale != 2.0 or scale_before != 1.0):
            raise ValueError("with adjust_scale the scales are 2 within and 1 before the mask head")
        self.backbone = backbone
        self.roi_head = KernelHead(embed_dim, out_dim)
        self.mask_head = ValueHead(embed_dim, hidden, out_dim, num_convs=num_convs, ratio=scale)
        self.scale_before, self.adjust_scale = scale_before, adjust_scale

    def forward(self, image: Tensor, area: Tensor) -> Tensor:
        """Crops ``(B, 3, S, S)`` and the areas of their boxes ``(B,)``, in pixels of the whole picture, to logits.

        The areas are best left on the CPU, whatever the device of the crops.

        Logits: float32 ``(B, 1, 4S/p, 4S/p)`` with patches of p; twice as fine without ``adjust_scale``.
        """
        feature = self.backbone(image)
        kernel = self.roi_head(feature)
        height, width = feature.shape[-2:]
        if not self.adjust_scale:
            logits = self._at_scale(feature, kernel, self.scale_before)
            return _resized(logits, 4 * logits.shape[2], 4 * logits.shape[3])
        size = (4 * height, 4 * width)
        bucket = size_bucket(area)  # where the areas are: on the CPU, looking at them makes no step wait
        if (
            torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
        ):  # no shape may depend on values: all scales for all, then a choice
            low, middle, high = (_resized(self._at_scale(feature, kernel, scale), *size) for scale in _FEATURE_SCALES)
            which = bucket.to(feature.device, non_blocking=True)[:, None, None, None]
            return torch.where(which == 0, low, torch.where(which == 1, middle, high))
        out: Tensor = kernel.new_zeros(len(bucket), 1, *size, dtype=torch.float32)
        for number, scale in enumerate(_FEATURE_SCALES):
            here = (bucket == number).nonzero().flatten().to(feature.device, non_blocking=True)
            if len(here):
                out = out.index_copy(0, here, _resized(self._at_scale(feature[here], kernel[here], scale), *size))
        return out

    def _at_scale(self, feature: Tensor, kernel: Tensor, scale: float) -> Tensor:
        if scale != 1:
            feature = _resized(feature, int(feature.shape[2] * scale), int(feature.shape[3] * scale))
        value = self.mask_head(feature)
        # 256 products of rectified features overflow half precision
        with torch.autocast(value.device.type, enabled=False):
            logits: Tensor = torch.einsum("bc,bchw->bhw", kernel.float(), value.float())
        return logits[:, None]


def build_labeler(
    arch: str = "vit-mae-base/16",
    *,
    hidden: int = 256,
    out_dim: int = 256,
    num_convs: int = 4,
    scale: float = 2.0,
    scale_before: float = 1.0,
    adjust_scale: bool = True,
    drop_path: float = 0.0,
    activation_checkpointing: bool = False,
) -> MaskNetwork:
    """An untrained network for your own loop. ``arch``: :func:`fiducial.backbones.names.map_info`'s names.

    Raises: ValueError for an unknown name, or settings that do not go together.
    """
    return MaskNetwork(
        build_map(arch, drop_path=drop_path, activation_checkpointing=activation_checkpointing),
        map_info(arch).dim,
        hidden=hidden,
        out_dim=out_dim,
        num_convs=num_convs,
        scale=scale,
        scale_before=scale_before,
        adjust_scale=adjust_scale,
    )
