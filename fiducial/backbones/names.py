"""The backbones a spec can name: their facts (light, no torch) and their builders (loaded when called).

Three roles exist. A *pyramid* maps ``(B, 3, H, W)`` to four feature maps, fine to coarse; an *embedding* maps it to one
vector per image, ``(B, D)``; a *map* is one feature map, which FAN and the plain vision transformers of
:mod:`fiducial.backbones.vit_names` give. The same name may build different modules for them (other patch size, keys).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fiducial.backbones.vit_names import parse_vit
from fiducial.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from fiducial.backbones.vit import MapBackbone


@dataclass(frozen=True)
class BackboneInfo:
    """What the rest of the project must know of a backbone before it is built."""

    name: str
    family: str
    """What a user calls its kind: ``FAN``, ``C-RADIO``, ``NVDINOv2``, ``DINOv3``."""
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
    depth: int
    """Number of blocks."""
    builder: str
    """``"module:function"``; called as ``function(name, role, image_size=(H, W), **options)``."""

    in_blocks: tuple[str, ...] = ()
    """Of the layers that some of the family have in their blocks and others have not, those that this one has."""
    hidden: int | None = None
    """Rows of the first layer of a block's MLP, where a family of the same names has another kind of MLP."""
    published: str | None = None
    """The hub repository that TAO takes its weights from where a spec names none and freezes it."""

    def embedding_width(self, height: int, width: int) -> int:
        """Numbers per image that the embedding gives for an input of this size in pixels."""
        if self.embedding_dim is not None:
            return self.embedding_dim
        return self.channels[-1] * (height // self.strides[-1]) * (width // self.strides[-1])


def _fan(name: str, width: int, depth: int) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        family="FAN",
        channels=(128, 256, width, width),
        strides=(4, 8, 16, 16),
        multiple=16,
        embedding_multiple=16,
        square=False,
        embedding_dim=None,
        depth=depth,
        builder="fiducial.backbones.fan:build",
    )


def _vit(
    name: str,
    family: str,
    builder: str,
    width: int,
    depth: int,
    *,
    embedding_multiple: int,
    summary: int = 1,
    in_blocks: tuple[str, ...] = (),
    hidden: int | None = None,
    published: str | None = None,
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
        depth=depth,
        builder=f"fiducial.backbones.{builder}:build",
        in_blocks=in_blocks,
        hidden=hidden,
        published=published,
    )


def _radio(name: str, sizes: tuple[int, int], summary: int = 3, in_blocks: tuple[str, ...] = ()) -> BackboneInfo:
    return _vit(
        f"c_radio_{name}", "C-RADIO", "radio", *sizes, embedding_multiple=16, summary=summary, in_blocks=in_blocks
    )


def _dinov3(kind: str, sizes: tuple[int, int], in_blocks: tuple[str, ...] = ()) -> BackboneInfo:
    return _vit(
        f"vit_{kind}_dinov3",
        "DINOv3",
        "dinov3",
        *sizes,
        embedding_multiple=16,
        in_blocks=in_blocks,
        published=f"timm/vit_{kind}_patch16_dinov3.lvd1689m",
    )


_SMALL, _BASE, _LARGE, _HUGE = (384, 12), (768, 12), (1024, 24), (1280, 32)
_SCALE, _MLP_NORM, _GATED = ("ls1.gamma",), ("mlp.norm.weight",), ("mlp.fc1_g.weight",)
_SOME_HAVE = (*_SCALE, *_MLP_NORM, *_GATED)

_INFOS = (
    _fan("fan_tiny_8_p4_hybrid", 192, 8),
    _fan("fan_small_12_p4_hybrid", 384, 10),
    _fan("fan_base_16_p4_hybrid", 448, 16),
    _fan("fan_large_16_p4_hybrid", 480, 22),
    _vit("vit_large_nvdinov2", "NVDINOv2", "dinov2", *_LARGE, embedding_multiple=14, in_blocks=_SCALE, hidden=5472),
    _radio("p1_vit_huge_patch16_224_mlpnorm", _HUGE, in_blocks=_MLP_NORM),
    _radio("p2_vit_huge_patch16_224_mlpnorm", _HUGE, summary=4, in_blocks=_MLP_NORM),
    _radio("p3_vit_huge_patch16_224_mlpnorm", _HUGE, in_blocks=_MLP_NORM),
    _radio("v2_vit_base_patch16_224", _BASE),
    _radio("v2_vit_large_patch16_224", _LARGE),
    _radio("v2_vit_huge_patch16_224", _HUGE),
    _radio("v3_vit_base_patch16_reg4_dinov2", _BASE, in_blocks=_SCALE),
    _radio("v3_vit_large_patch16_reg4_dinov2", _LARGE, in_blocks=_SCALE),
    _radio("v3_vit_huge_patch16_reg4_dinov2", _HUGE),
    _dinov3("small", _SMALL),
    _dinov3("small_plus", _SMALL, _GATED),
    _dinov3("base", _BASE),
    _dinov3("large", _LARGE),
    _dinov3("huge_plus", _HUGE, _GATED),
    _dinov3("7b", (4096, 40), _GATED),
)

BACKBONES: dict[str, BackboneInfo] = {info.name: info for info in _INFOS}

MAPS = tuple(info.name for info in _INFOS if info.family == "FAN")
"""Those of them that also give a map alone; beside them, plain vision transformers do."""

_MARKS = {
    "FAN": "patch_embed.backbone.stem.0.weight",
    "C-RADIO": "patch_generator.embedder.weight",
    "DINOv3": "blocks.0.gamma_1",
}
"""Tensors by whose names a family is told; what has none of them is a plain ViT."""
_FIRST = "blocks.0.norm1.weight"


def backbones_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The backbones that tensors of these names and shapes can be of: of the same family, width, depth and blocks.

    Before the names of a ViT within a backbone anything may stand (``radio.radio.model.``). Several fit where
    generations of a family differ in nothing but their values.
    """
    first = next((key for key in shapes if f".{key}".endswith(f".{_FIRST}")), None)
    if first is None:
        return ()
    stem = first.removesuffix(_FIRST)
    family = next((name for name, mark in _MARKS.items() if stem + mark in shapes), "NVDINOv2")
    depth = len({key.removeprefix(stem).split(".")[1] for key in shapes if key.startswith(f"{stem}blocks.")})
    hidden, width = (next(iter(shapes.get(key, ())), None) for key in (f"{stem}blocks.0.mlp.fc1.weight", first))
    return tuple(
        info.name
        for info in BACKBONES.values()
        if (info.family, info.channels[-1], info.depth) == (family, width, depth)
        and info.hidden in (None, hidden)
        and all((f"{stem}blocks.0.{layer}" in shapes) == (layer in info.in_blocks) for layer in _SOME_HAVE)
    )


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


@dataclass(frozen=True)
class MapInfo:
    """What the rest of the project must know of a backbone that gives one map."""

    name: str
    dim: int
    """Channels of the map."""
    stride: int
    """Input pixels per cell of the map; sides of the input must be multiples of it."""


def map_info(name: str) -> MapInfo:
    """The facts of a map by a name such as ``vit-mae-base/16`` or ``fan_tiny_8_p4_hybrid``.

    Raises: ValueError for another name.
    """
    if name in MAPS:
        return MapInfo(name, BACKBONES[name].channels[2], BACKBONES[name].strides[2])
    try:
        size, patch = parse_vit(name)
    except ValueError as error:
        raise ValueError(f"{error}, or one of {', '.join(MAPS)}") from None
    return MapInfo(name, size.dim, patch)


def build_map(
    name: str,
    *,
    image_size: tuple[int, int] = (512, 512),
    drop_path: float = 0.0,
    activation_checkpointing: bool = False,
) -> MapBackbone:
    """An untrained module of a name that :func:`map_info` knows. ``drop_path``: rate of the last block.

    Raises: ValueError for another name.
    """
    from fiducial.backbones.fan import FanMap
    from fiducial.backbones.mae import build_vit
    from fiducial.ops.linear import use_fast_linears

    built: MapBackbone
    if name in MAPS:
        built = FanMap(
            name, image_size=image_size, drop_path=drop_path, activation_checkpointing=activation_checkpointing
        )
    else:
        map_info(name)  # which says all the names there are
        built = build_vit(name, drop_path=drop_path, activation_checkpointing=activation_checkpointing)
    use_fast_linears(built)
    return built
