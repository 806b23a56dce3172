"""FAN hybrid: two ConvNeXt stages, then fully attentional blocks (Zhou et al. 2022, arXiv:2204.12451).

Keys, widths and numbers are those of TAO's feature-pyramid variant.

Dims: B batch, C channels, H and W rows and columns of a map, N = H * W tokens, h heads, d = C / h.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.xcit import ClassAttentionBlock
from torch import Tensor, nn

from fiducial.backbones.recompute import run_block
from fiducial.backbones.sizes import check_images

__all__ = [
    "DOWNSAMPLED_CHANNELS",
    "FanClassToken",
    "FanEmbedding",
    "FanPyramid",
    "build",
    "build_class_token",
    "fourier_table",
]

DOWNSAMPLED_CHANNELS = 768
"""Channels of the last map with ``feat_downsample``; its stride is then 32."""

STEM_CHANNELS = (128, 256)
FOURIER_CHANNELS = 32
"""Channels of the position encoding per axis."""
PYRAMID_DROP_PATH = 0.3
"""The same in every FAN block: TAO's pyramid has no ramp."""
EPS = 1e-6

_layer_norm = partial(nn.LayerNorm, eps=EPS)


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


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``(B, C, H, W)``.

    ``unbiased``: divide the squared deviations by C - 1. TAO's module does so whenever its input is stored
    channels-last, which is so everywhere but right after the first convolution; here it depends on the place in the
    network and never on the memory layout. With r = (C - 1) / C it is plain layer norm with ``weight * sqrt(r)`` and
    ``eps * r``.
    """

    def __init__(self, channels: int, *, unbiased: bool) -> None:
        super().__init__(channels, eps=EPS)
        self.ratio = (channels - 1) / channels if unbiased else 1.0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape; every pixel has mean 0 and variance 1 before weight and bias."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        scale_C = self.weight * math.sqrt(self.ratio)
        x_BHWC = F.layer_norm(x_BHWC, self.normalized_shape, scale_C, self.bias, self.eps * self.ratio)
        return x_BHWC.permute(0, 3, 1, 2)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels, unbiased=True)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(channels, 4 * channels, 1),
                act=nn.GELU(),
                fc2=nn.Conv2d(4 * channels, channels, 1),
            )
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch: Tensor = self.mlp(self.norm(self.conv_dw(x_BCHW)))
        return x_BCHW + self.gamma[:, None, None] * branch


class _Stage(nn.Module):
    def __init__(self, channels: int, depth: int, downsample: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(_ConvNeXtBlock(channels) for _ in range(depth))

    def forward(self, x_BCHW: Tensor, apply: Callable[..., Tensor]) -> Tensor:
        x_BCHW = self.downsample(x_BCHW)
        for block in self.blocks:
            x_BCHW = apply(block, x_BCHW)
        return x_BCHW


class _ConvNeXtStages(nn.Module):
    """``(B, 3, H, W)`` to the maps of strides 4 and 8."""

    def __init__(self, depths: tuple[int, int]) -> None:
        super().__init__()
        fine, coarse = STEM_CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(3, fine, 4, stride=4), LayerNorm2d(fine, unbiased=False))
        downsample = nn.Sequential(LayerNorm2d(fine, unbiased=True), nn.Conv2d(fine, coarse, 2, stride=2))
        self.stages = nn.ModuleList(
            (_Stage(fine, depths[0], nn.Identity()), _Stage(coarse, depths[1], downsample)),
        )

    def forward(self, x_B3HW: Tensor, apply: Callable[..., Tensor]) -> list[Tensor]:
        x_BCHW = self.stem(x_B3HW)
        maps = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW, apply)
            maps.append(x_BCHW)
        return maps


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, stem_depths: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = _ConvNeXtStages(stem_depths)
        self.proj = nn.Conv2d(STEM_CHANNELS[-1], width, 2, stride=2)


def fourier_table(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines, float32 ``(1, 64, height, width)``: 32 channels of the row, then 32 of the column.

    Positions run over (0, 2 pi]; channel k has wavelength factor ``10000 ** (2 * floor(k / 2) / 32)``, sine for even k,
    cosine for odd (El-Nouby et al. 2021, arXiv:2106.09681).
    """
    pair = torch.arange(FOURIER_CHANNELS, device=device).div(2, rounding_mode="floor")
    wavelength_K = 10000.0 ** (2.0 * pair / FOURIER_CHANNELS)

    def axis(length: int) -> Tensor:
        position_L = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + EPS) * (2 * math.pi)
        angle_LK = position_L[:, None] / wavelength_K
        return torch.stack((angle_LK[:, 0::2].sin(), angle_LK[:, 1::2].cos()), dim=2).flatten(1)

    rows_HWK = axis(height)[:, None].expand(-1, width, -1)
    columns_HWK = axis(width)[None].expand(height, -1, -1)
    return torch.cat((rows_HWK, columns_HWK), dim=2).permute(2, 0, 1)[None]


class _PositionEncoding(nn.Module):
    """Learned projection of :func:`fourier_table`. The table of the expected size is made once."""

    table: Tensor

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * FOURIER_CHANNELS, channels, 1)
        self.register_buffer("table", fourier_table(*size), persistent=False)

    def forward(self, height: int, width: int) -> Tensor:
        table = self.table
        if table.shape[-2:] != (height, width):
            table = fourier_table(height, width, table.device).to(table.dtype)
        encoding_1CHW: Tensor = self.token_projection(table)
        return encoding_1CHW.flatten(2).transpose(1, 2)


class _TokenMixing(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q_BhNd = torch.unflatten(self.q(x_BNC), 2, (self.heads, -1)).transpose(1, 2)
        kv_BN2hd = torch.unflatten(self.kv(x_BNC), 2, (2, self.heads, -1))
        k_BhNd, v_BhNd = kv_BN2hd.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BhNd = F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd)
        out_BNC: Tensor = self.proj(mixed_BhNd.transpose(1, 2).flatten(2))
        return out_BNC


class _DepthwiseConvs(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv2(self.bn(F.gelu(self.conv1(x_BCHW))))
        return out_BCHW


class _ConvMlp(nn.Module):
    """Linear layers around a depthwise-convolution residual. Tokens are read as a channels-last map, without a copy."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.gamma = nn.Parameter(torch.ones(hidden))
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = _DepthwiseConvs(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        u_BNC = self.fc1(x_BNC)
        u_BCHW = torch.unflatten(u_BNC, 1, (height, width)).permute(0, 3, 1, 2)
        local_BNC = self.dwconv(u_BCHW).permute(0, 2, 3, 1).flatten(1, 2)
        out_BNC: Tensor = self.fc2(self.gamma * local_BNC + u_BNC)
        return out_BNC


class _ChannelProcessing(nn.Module):
    """An MLP whose channels are gated by their attention to the head they belong to."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.mlp_v = _ConvMlp(channels)
        self.norm_v = _layer_norm(channels)
        self.q = nn.Linear(channels, channels)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        key_BNh = torch.unflatten(x_BNC, 2, (self.heads, -1)).softmax(1).mean(3)
        query_BNhd = torch.unflatten(self.q(x_BNC), 2, (self.heads, -1)).softmax(1)
        gate_Bhd = (query_BNhd * key_BNh[..., None]).sum(1).sigmoid() * self.temperature[..., 0]
        value_BNC = self.norm_v(self.mlp_v(x_BNC, height, width))
        out_BNC: Tensor = value_BNC * gate_Bhd.flatten(1)[:, None]
        return out_BNC


class _FanBlock(nn.Module):
    def __init__(self, channels: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))
        self.norm1 = _layer_norm(channels)
        self.attn = _TokenMixing(channels, heads)
        self.norm2 = _layer_norm(channels)
        self.mlp = _ChannelProcessing(channels, heads)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        x_BNC = x_BNC + self.drop_path(self.gamma1 * self.attn(self.norm1(x_BNC)))
        x_BNC = x_BNC + self.drop_path(self.gamma2 * self.mlp(self.norm2(x_BNC), height, width))
        return x_BNC


class _ClassAttention(ClassAttentionBlock):
    """XCiT's class-attention block, as FAN has it: the class token looks at all tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads, qkv_bias=True, eta=1.0, tokens_norm=True)
        self.norm1, self.norm2 = _layer_norm(channels), _layer_norm(channels)


class _PatchClassAttention(_ClassAttention):
    """What the block makes of the patch tokens, which see neither the class token nor one another.

    Its other parameters are there for the checkpoint's keys.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        for unused in (self.attn, self.mlp):
            unused.requires_grad_(False)
        self.gamma2.requires_grad_(False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        normed_BNC: Tensor = self.norm2(x_BNC + self.gamma1 * self.norm1(x_BNC))
        return 2 * normed_BNC  # TAO-compat: the block adds its normed input to itself; a clean design would not


class _Fan(nn.Module):
    """What every FAN has, under the names of its files, and the way through it up to the class token."""

    def __init__(
        self,
        variant: _Variant,
        class_attention: Callable[[int, int], nn.Module],
        *,
        image_size: tuple[int, int],
        drop_path: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        width = variant.width
        self.activation_checkpointing = activation_checkpointing
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = _PatchEmbed(width, variant.stem_depths)
        self.pos_embed = _PositionEncoding(width, (image_size[0] // 16, image_size[1] // 16))
        self.blocks = nn.ModuleList(_FanBlock(width, variant.heads, drop_path) for _ in range(variant.depth))
        self.cls_attn_blocks = nn.ModuleList(class_attention(width, variant.heads) for _ in range(2))

    def _embed(self, x_B3HW: Tensor) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """The maps of the convolutional stages, the tokens with their positions, and rows and columns of these."""
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
            elif isinstance(module, _DepthwiseConvs):
                for conv in (module.conv1, module.conv2):
                    _init_weight(conv, partial(nn.init.normal_, std=math.sqrt(2 / 9)))  # 2 / (k * k * out / groups)
        for module in self.patch_embed.backbone.modules():
            if isinstance(module, nn.Conv2d):
                _init_weight(module, partial(nn.init.trunc_normal_, std=0.02))


def _init_weight(layer: nn.Linear | nn.Conv2d, init: Callable[[Tensor], Tensor]) -> None:
    init(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FanPyramid(_Fan):
    """``(B, 3, H, W)`` to four maps of strides 4, 8, 16, 16 (32 with ``feat_downsample``).

    H and W must be multiples of the last stride. The class token and its attention are there for the checkpoint's keys:
    no map depends on them, so they are neither run nor trained.
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
            _PatchClassAttention,
            image_size=image_size,
            drop_path=PYRAMID_DROP_PATH,
            activation_checkpointing=activation_checkpointing,
        )
        self.tap = variant.depth - 1 if variant.tap is None else variant.tap
        self.frozen = False
        self.cls_token.requires_grad_(False)
        self.learnable_downsample = (
            nn.Conv2d(variant.width, DOWNSAMPLED_CHANNELS, 3, stride=2, padding=1) if feat_downsample else None
        )
        self._initialise()

    def forward(self, x_B3HW: Tensor) -> list[Tensor]:
        """Normalised images ``(B, 3, H, W)`` to the maps ``(B, C, H / stride, W / stride)``, fine to coarse.

        Maps are of any range: no norm follows the last block.
        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16 (32 with ``feat_downsample``).
        """
        check_images(x_B3HW, multiple=16 if self.learnable_downsample is None else 32)
        maps, x_BNC, size = self._embed(x_B3HW)

        def as_map(tokens_BNC: Tensor) -> Tensor:
            return torch.unflatten(tokens_BNC.transpose(1, 2), 2, size)

        for index, block in enumerate(self.blocks):
            x_BNC = self._apply_block(block, x_BNC, *size)
            if index == self.tap:
                maps.append(as_map(x_BNC))
        for block in self.cls_attn_blocks:
            x_BNC = block(x_BNC)
        last = as_map(x_BNC)
        maps.append(last if self.learnable_downsample is None else self.learnable_downsample(last))
        return maps

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


class FanEmbedding(FanPyramid):
    """``(B, 3, H, W)`` to the last map, flattened: ``(B, C * H/16 * W/16)``. Same keys as the pyramid."""

    def forward(self, x_B3HW: Tensor) -> Tensor:  # type: ignore[override]
        """Normalised images ``(B, 3, H, W)`` to ``(B, C * H/16 * W/16)``, of any range; with ``feat_downsample``, 32.

        Raises: ValueError as :meth:`FanPyramid.forward`.
        """
        return super().forward(x_B3HW)[-1].flatten(1)


class FanClassToken(_Fan):
    """``(B, 3, H, W)`` to ``(B, C)``: the class token, which has looked at all patches, after the final norm.

    As TAO classifies and recognises with it: nothing is dropped in training, and the maps are not tapped.
    """

    def __init__(
        self, variant: _Variant, *, image_size: tuple[int, int], activation_checkpointing: bool = False
    ) -> None:
        super().__init__(
            variant,
            _ClassAttention,
            image_size=image_size,
            drop_path=0.0,
            activation_checkpointing=activation_checkpointing,
        )
        self.norm = _layer_norm(variant.width)
        self._initialise()

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, C)``, of mean 0 and variance 1 before the norm's weight and bias.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        check_images(x_B3HW, multiple=16)
        _, x_BNC, size = self._embed(x_B3HW)
        for block in self.blocks:
            x_BNC = self._apply_block(block, x_BNC, *size)
        x_BNC = torch.cat((self.cls_token.to(x_BNC.dtype).expand(len(x_BNC), -1, -1), x_BNC), dim=1)
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
