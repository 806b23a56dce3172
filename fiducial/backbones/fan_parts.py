"""The layers of FAN hybrid: ConvNeXt blocks, fully attentional blocks, class attention (see :mod:`.fan`).

Dims: B batch, C channels, H and W rows and columns of a map, N = H * W tokens, h heads, d = C / h.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.xcit import ClassAttentionBlock
from torch import Tensor, nn

from fiducial.backbones.recompute import gelu_again

__all__ = [
    "ClassAttention",
    "FanBlock",
    "LayerNorm2d",
    "PatchClassAttention",
    "PatchEmbed",
    "PositionEncoding",
    "fourier_table",
]

STEM_CHANNELS = (128, 256)
FOURIER_CHANNELS = 32
"""Channels of the position encoding per axis."""
EPS = 1e-6

layer_norm = partial(nn.LayerNorm, eps=EPS)


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
        fc1, fc2 = self.mlp[0], self.mlp[2]
        branch = gelu_again(fc1(self.norm(self.conv_dw(x_BCHW))), fc2)
        return torch.addcmul(x_BCHW, self.gamma[:, None, None], branch)


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


class ConvNeXtStages(nn.Module):
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


class PatchEmbed(nn.Module):
    def __init__(self, width: int, stem_depths: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = ConvNeXtStages(stem_depths)
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


class PositionEncoding(nn.Module):
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


class DepthwiseConvs(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv2(gelu_again(self.conv1(x_BCHW), self.bn))
        return out_BCHW


class _ConvMlp(nn.Module):
    """Linear layers around a depthwise-convolution residual. Tokens are read as a channels-last map, without a copy."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.gamma = nn.Parameter(torch.ones(hidden))
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConvs(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        u_BNC = self.fc1(x_BNC)
        u_BCHW = torch.unflatten(u_BNC, 1, (height, width)).permute(0, 3, 1, 2)
        local_BNC = self.dwconv(u_BCHW).permute(0, 2, 3, 1).flatten(1, 2)
        out_BNC: Tensor = self.fc2(torch.addcmul(u_BNC, self.gamma, local_BNC))
        return out_BNC


class _ChannelProcessing(nn.Module):
    """An MLP whose channels are gated by their attention to the head they belong to."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.mlp_v = _ConvMlp(channels)
        self.norm_v = layer_norm(channels)
        self.q = nn.Linear(channels, channels)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        key_BNh = torch.unflatten(x_BNC, 2, (self.heads, -1)).softmax(1).mean(3)
        query_BNhd = torch.unflatten(self.q(x_BNC), 2, (self.heads, -1)).softmax(1)
        gate_Bhd = (query_BNhd * key_BNh[..., None]).sum(1).sigmoid() * self.temperature[..., 0]
        value_BNC = self.norm_v(self.mlp_v(x_BNC, height, width))
        out_BNC: Tensor = value_BNC * gate_Bhd.flatten(1)[:, None]
        return out_BNC


class FanBlock(nn.Module):
    def __init__(self, channels: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))
        self.norm1 = layer_norm(channels)
        self.attn = _TokenMixing(channels, heads)
        self.norm2 = layer_norm(channels)
        self.mlp = _ChannelProcessing(channels, heads)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BNC: Tensor, height: int, width: int) -> Tensor:
        x_BNC = torch.addcmul(x_BNC, self.gamma1, self.drop_path(self.attn(self.norm1(x_BNC))))
        return torch.addcmul(x_BNC, self.gamma2, self.drop_path(self.mlp(self.norm2(x_BNC), height, width)))


class ClassAttention(ClassAttentionBlock):
    """XCiT's class-attention block, as FAN has it: the class token looks at all tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads, qkv_bias=True, eta=1.0, tokens_norm=True)
        self.norm1, self.norm2 = layer_norm(channels), layer_norm(channels)


class PatchClassAttention(ClassAttention):
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
