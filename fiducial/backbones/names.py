"""The backbones a spec can name: their facts (light, no torch) and their builders (loaded when called).

Two roles exist. A *pyramid* maps ``(B, 3, H, W)`` to four feature maps, fine to coarse; an *embedding* maps it to one
vector per image, ``(B, D)``. The same name may build different modules for the two (other patch size, other keys).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fiducial.errors import SpecError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BackboneInfo:
    """What the rest of the project must know of a backbone before it is built."""

    name: str
    family: str
    """What a user calls its kind: ``FAN``, ``C-RADIO``, ``NVDINOv2``."""
    channels: tuple[int, int, int, int]
    """Channels of the four maps of the pyramid, fine to coarse."""
    strides: tuple[int, int, int, int]
    """Input pixels per cell of the four maps."""
    multiple: int
    """Height and width of a pyramid's input must be multiples of this."""
    embedding_multiple: int
    """The same for an embedding's input."""
    square: bool
    """Whether the architecture only takes square inputs."""
    embedding_dim: int | None
    """Width of the embedding; None when it is the last map flattened, so that it depends on the input size."""
    builder: str
    """``"module:function"``; called as ``function(name, role, image_size=(H, W), **options)``."""

    def embedding_width(self, height: int, width: int) -> int:
        """Numbers per image that the embedding gives for an input of this size in pixels."""
        if self.embedding_dim is not None:
            return self.embedding_dim
        return self.channels[-1] * (height // self.strides[-1]) * (width // self.strides[-1])


def _fan(name: str, width: int) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        family="FAN",
        channels=(128, 256, width, width),
        strides=(4, 8, 16, 16),
        multiple=16,
        embedding_multiple=16,
        square=False,
        embedding_dim=None,
        builder="fiducial.backbones.fan:build",
    )


def _vit(
    name: str, family: str, builder: str, width: int, *, embedding_multiple: int, summary: int = 1
) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        family=family,
        channels=(width,) * 4,
        strides=(4, 8, 16, 32),
        multiple=32,
        embedding_multiple=embedding_multiple,
        square=False,
        embedding_dim=summary * width,
        builder=f"fiducial.backbones.{builder}:build",
    )


def _radio(name: str, width: int, summary: int = 3) -> BackboneInfo:
    return _vit(f"c_radio_{name}", "C-RADIO", "radio", width, embedding_multiple=16, summary=summary)


_INFOS = (
    _fan("fan_tiny_8_p4_hybrid", 192),
    _fan("fan_small_12_p4_hybrid", 384),
    _fan("fan_base_16_p4_hybrid", 448),
    _fan("fan_large_16_p4_hybrid", 480),
    _vit("vit_large_nvdinov2", "NVDINOv2", "dinov2", 1024, embedding_multiple=14),
    _radio("p1_vit_huge_patch16_224_mlpnorm", 1280),
    _radio("p2_vit_huge_patch16_224_mlpnorm", 1280, summary=4),
    _radio("p3_vit_huge_patch16_224_mlpnorm", 1280),
    _radio("v2_vit_base_patch16_224", 768),
    _radio("v2_vit_large_patch16_224", 1024),
    _radio("v2_vit_huge_patch16_224", 1280),
    _radio("v3_vit_base_patch16_reg4_dinov2", 768),
    _radio("v3_vit_large_patch16_reg4_dinov2", 1024),
    _radio("v3_vit_huge_patch16_reg4_dinov2", 1280),
)

BACKBONES: dict[str, BackboneInfo] = {info.name: info for info in _INFOS}


def backbone_info(name: str) -> BackboneInfo:
    """The facts of a backbone. Raises: SpecError listing the known names."""
    try:
        return BACKBONES[name]
    except KeyError:
        known = ", ".join(BACKBONES)
        raise SpecError("backbone", f"unknown backbone {name!r}", f"use one of: {known}") from None


def _build(name: str, role: str, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    from fiducial.ops.linear import use_fast_linears  # brings torch, which this module does without

    module, function = backbone_info(name).builder.split(":")
    built: nn.Module = getattr(importlib.import_module(module), function)(name, role, image_size=image_size, **options)
    use_fast_linears(built)
    return built


def build_pyramid(name: str, *, image_size: tuple[int, int], **options: Any) -> nn.Module:
    """An untrained module that maps ``(B, 3, H, W)`` to a list of four maps.

    ``image_size`` is the ``(height, width)`` the module will mostly see (position tables are sized by it). Options are
    the family's own (``use_summary_token`` for C-RADIO, ``feat_downsample`` for FAN, ``activation_checkpointing``).
    The module has ``freeze()``: TAO's meaning of ``freeze_backbone: true``; what is frozen stays in eval mode.
    """
    return _build(name, "pyramid", image_size, options)


def build_embedding(name: str, *, image_size: tuple[int, int], **options: Any) -> nn.Module:
    """An untrained module that maps ``(B, 3, H, W)`` to ``(B, embedding_width(H, W))``; with ``freeze()`` as above."""
    return _build(name, "embedding", image_size, options)
