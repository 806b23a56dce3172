"""FAN hybrid: two ConvNeXt stages, then fully attentional blocks (Zhou et al. 2022, arXiv:2204.12451).

Keys, widths and numbers are those of TAO's feature-pyramid variant.

Dims: B batch, C channels, H and W rows and columns of a map, N = H * W tokens, h heads, d = C / h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fiducial.backbones.fan_parts import (
    ClassAttention,
    DepthwiseConvs,
    FanBlock,
    PatchClassAttention,
    PatchEmbed,
    PositionEncoding,
    layer_norm,
)
from fiducial.backbones.recompute import run_block
from fiducial.backbones.sizes import check_images
from fiducial.backbones.vit import MapBackbone

__all__ = [
    "DOWNSAMPLED_CHANNELS",
    "FanClassToken",
    "FanEmbedding",
    "FanMap",
    "FanPyramid",
    "build",
    "build_class_token",
]

DOWNSAMPLED_CHANNELS = 768
"""Channels of the last map with ``feat_downsample``; its stride is then 32."""

DROP_PATH = 0.3
"""The same in every FAN block: TAO's pyramid has no ramp."""


@dataclass(frozen=True)
class _Variant:
    width: int
    depth: int
    heads: int
    stem_depths: tuple[int, int] = (3, 3)
    tap: int | None = None
    """The block whose output is the third map; None: the last."""


_VARIANTS = {
    "fan_tiny_8_p4_hybrid": _Variant(width=192, depth=8, heads=8),
    "fan_small_12_p4_hybrid": _Variant(width=384, depth=10, heads=8),
    "fan_base_16_p4_hybrid": _Variant(width=448, depth=16, heads=8),
    "fan_large_16_p4_hybrid": _Variant(width=480, depth=22, heads=10, stem_depths=(3, 5), tap=18),
}


class FanTrunk(nn.Module):
    """What all FANs are made of; a subclass says what they give.

    ``drop_path``: rates of stochastic depth, one for each block.
    """

    class_attention: type[ClassAttention] = PatchClassAttention

    def __init__(
        self,
        variant: _Variant,
        *,
        image_size: tuple[int, int],
        drop_path: Sequence[float],
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        width = variant.width
        self.activation_checkpointing = activation_checkpointing
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = PatchEmbed(width, variant.stem_depths)
        self.pos_embed = PositionEncoding(width, (image_size[0] // 16, image_size[1] // 16))
        self.blocks = nn.ModuleList(FanBlock(width, variant.heads, rate) for rate in drop_path)
        self.cls_attn_blocks = nn.ModuleList(self.class_attention(width, variant.heads) for _ in range(2))
        self._initialise()

    def _embed(self, x_B3HW: Tensor) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """The maps of strides 4 and 8, the tokens with their positions, and rows and columns of these."""
        maps: list[Tensor] = self.patch_embed.backbone(x_B3HW, self._apply_block)
        x_BCHW = self.patch_embed.proj(maps[-1])
        height, width = x_BCHW.shape[-2:]
        return maps, x_BCHW.flatten(2).transpose(1, 2) + self.pos_embed(height, width), (height, width)

    def _apply_block(self, block: nn.Module, x: Tensor, *size: int) -> Tensor:
        return run_block(self.activation_checkpointing, block, x, *size)

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_weight(module, partial(nn.init.trunc_normal_, std=0.02))
            elif isinstance(module, DepthwiseConvs):
                for conv in (module.conv1, module.conv2):
                    _init_weight(conv, partial(nn.init.normal_, std=math.sqrt(2 / 9)))  # 2 / (k * k * out / groups)
        for module in self.patch_embed.backbone.modules():
            if isinstance(module, nn.Conv2d):
                _init_weight(module, partial(nn.init.trunc_normal_, std=0.02))


class FanMaps(FanTrunk):
    """What gives maps. The class token and its attention are there for the checkpoint's keys: no map depends on them,
    so they are neither run nor trained."""

    def __init__(
        self,
        variant: _Variant,
        *,
        image_size: tuple[int, int],
        drop_path: Sequence[float],
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            variant,
            image_size=image_size,
            drop_path=drop_path,
            activation_checkpointing=activation_checkpointing,
        )
        self.tap = variant.depth - 1 if variant.tap is None else variant.tap
        self.cls_token.requires_grad_(False)

    def _run(self, x_B3HW: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of strides 4, 8 and 16 on the way, and the last tokens as a map of stride 16."""
        maps, x_BNC, size = self._embed(x_B3HW)

        def as_map(tokens_BNC: Tensor) -> Tensor:
            return torch.unflatten(tokens_BNC.transpose(1, 2), 2, size)

        for index, block in enumerate(self.blocks):
            x_BNC = self._apply_block(block, x_BNC, *size)
            if index == self.tap:
                maps.append(as_map(x_BNC))
        for block in self.cls_attn_blocks:
            x_BNC = block(x_BNC)
        return maps, as_map(x_BNC)


class FanPyramid(FanMaps):
    """``(B, 3, H, W)`` to four maps of strides 4, 8, 16, 16 (32 with ``feat_downsample``).

    H and W must be multiples of the last stride.
    """

    def __init__(
        self,
        variant: _Variant,
        *,
        image_size: tuple[int, int],
        feat_downsample: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            variant,
            image_size=image_size,
            drop_path=[DROP_PATH] * variant.depth,
            activation_checkpointing=activation_checkpointing,
        )
        self.frozen = False
        self.learnable_downsample = (
            nn.Conv2d(variant.width, DOWNSAMPLED_CHANNELS, 3, stride=2, padding=1) if feat_downsample else None
        )

    def forward(self, x_B3HW: Tensor) -> list[Tensor]:
        """Normalised images ``(B, 3, H, W)`` to the maps ``(B, C, H / stride, W / stride)``, fine to coarse.

        Maps are of any range: no norm follows the last block.
        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16 (32 with ``feat_downsample``).
        """
        check_images(x_B3HW, multiple=16 if self.learnable_downsample is None else 32)
        maps, last = self._run(x_B3HW)
        return [*maps, last if self.learnable_downsample is None else self.learnable_downsample(last)]

    def freeze(self) -> None:
        """Stop training of everything but ``learnable_downsample``; what is frozen stays in eval mode."""
        self.frozen = True
        self.requires_grad_(False)
        if self.learnable_downsample is not None:
            self.learnable_downsample.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> FanPyramid:
        super().train(mode and not self.frozen)
        if self.learnable_downsample is not None:
            self.learnable_downsample.train(mode)
        return self


def _init_weight(layer: nn.Linear | nn.Conv2d, init: Callable[[Tensor], Tensor]) -> None:
    init(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FanEmbedding(FanPyramid):
    """``(B, 3, H, W)`` to the last map, flattened: ``(B, C * H/16 * W/16)``. Same keys as the pyramid."""

    def forward(self, x_B3HW: Tensor) -> Tensor:  # type: ignore[override]
        """Normalised images ``(B, 3, H, W)`` to ``(B, C * H/16 * W/16)``, of any range; with ``feat_downsample``, 32.

        Raises: ValueError as :meth:`FanPyramid.forward`.
        """
        return super().forward(x_B3HW)[-1].flatten(1)


class FanMap(FanMaps, MapBackbone):
    """``(B, 3, H, W)`` to the normed tokens of the last block as a map: ``(B, C, H/16, W/16)``.

    Keys are those of the published files without their head. ``drop_path``: the rate of the last block, growing from 0.
    """

    def __init__(
        self, name: str, *, image_size: tuple[int, int], drop_path: float = 0.0, activation_checkpointing: bool = False
    ) -> None:
        variant = _VARIANTS[name]
        super().__init__(
            variant,
            image_size=image_size,
            drop_path=[drop_path * place / (variant.depth - 1) for place in range(variant.depth)],
            activation_checkpointing=activation_checkpointing,
        )
        self.norm = layer_norm(variant.width)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, C, H/16, W/16)``; every cell has mean 0 and variance 1 before
        weight and bias. Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        check_images(x_B3HW, multiple=16)
        normed_BHWC: Tensor = self.norm(self._run(x_B3HW)[1].permute(0, 2, 3, 1))
        return normed_BHWC.permute(0, 3, 1, 2)


class FanClassToken(FanTrunk):
    """``(B, 3, H, W)`` to ``(B, C)``: the class token, which has looked at all patches, after the final norm.

    As TAO classifies and recognises with it: nothing is dropped in training, and the maps are not tapped.
    """

    class_attention = ClassAttention

    def __init__(
        self, variant: _Variant, *, image_size: tuple[int, int], activation_checkpointing: bool = False
    ) -> None:
        super().__init__(
            variant,
            image_size=image_size,
            drop_path=[0.0] * variant.depth,
            activation_checkpointing=activation_checkpointing,
        )
        self.norm = layer_norm(variant.width)
        self._initialise()

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, C)``, of mean 0 and variance 1 before the norm's weight and bias.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        check_images(x_B3HW, multiple=16)
        _, x_BNC, size = self._embed(x_B3HW)
        for block in self.blocks:
            x_BNC = self._apply_block(block, x_BNC, *size)
        x_BNC = torch.cat((self.cls_token.to(x_BNC.dtype).expand(x_BNC.shape[0], -1, -1), x_BNC), dim=1)
        for block in self.cls_attn_blocks:
            x_BNC = self._apply_block(block, x_BNC)
        embedding_BC: Tensor = self.norm(x_BNC[:, 0])
        return embedding_BC


def build(
    name: str,
    role: str,
    *,
    image_size: tuple[int, int],
    feat_downsample: bool = False,
    activation_checkpointing: bool = False,
) -> FanPyramid:
    """The untrained FAN of this name: ``role`` "pyramid" or "embedding" (see :mod:`fiducial.backbones.names`).

    Raises: ValueError for another name or role.
    """
    roles: dict[str, type[FanPyramid]] = {"pyramid": FanPyramid, "embedding": FanEmbedding}
    if name not in _VARIANTS or role not in roles:
        raise ValueError(f"no FAN {name!r} with role {role!r}; names {list(_VARIANTS)}, roles {list(roles)}")
    return roles[role](
        _VARIANTS[name],
        image_size=image_size,
        feat_downsample=feat_downsample,
        activation_checkpointing=activation_checkpointing,
    )


def build_class_token(
    name: str, *, image_size: tuple[int, int], activation_checkpointing: bool = False
) -> FanClassToken:
    """The untrained FAN of this name that gives its class token. Raises: ValueError for another name."""
    if name not in _VARIANTS:
        raise ValueError(f"no FAN {name!r}; there are {', '.join(_VARIANTS)}")
    return FanClassToken(_VARIANTS[name], image_size=image_size, activation_checkpointing=activation_checkpointing)
