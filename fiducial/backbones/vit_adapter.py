"""ViT-Adapter: a plain ViT gives a pyramid of feature maps (Chen et al. 2023, with the changes TAO made to it).

A small convolutional network, the spatial prior, sees the image at strides 8, 16 and 32. Four times, patch tokens look
into the prior (injector), pass a quarter of the ViT's blocks, and the prior looks into them (extractor); looking is
multi-scale deformable attention.

Legend: S prefix tokens, N = h w patch tokens (stride 16), L = 4N + N + N / 4 cells of the prior, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple, cast

import torch
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from torch.nn import functional as F

from fiducial.backbones.deformable import MSDeformAttn
from fiducial.backbones.recompute import gelu_again, norm_again
from fiducial.backbones.vit import (
    Freezable,
    SizeCache,
    as_table,
    checkpointed,
    initialise_linear,
    patch_grid,
    run_blocks,
)

__all__ = ["ADAPTER_PARTS", "STRIDE", "ViTAdapter"]

STRIDE = 32
"""Height and width of an input must be multiples of this."""
INTERACTIONS = 4
EXTRA_EXTRACTORS = 2
ADAPTER_PARTS = (
    "level_embed",
    "spm",
    "interactions",
    "up",
    *(f"norm{level}" for level in range(1, 5)),
    "fc_summary",
    *(f"conv{level}" for level in range(1, 5)),
)
"""Names of what the adapter adds to a ViT: a file with the weights of a bare ViT does not have them."""


class _Target(NamedTuple):
    """Where deformable attention looks: the maps it samples and the place of each query on them."""

    points: Tensor  # (1, queries, 1, 2), (x, y) in 0..1
    shapes: Tensor  # (levels, 2), rows and columns
    starts: Tensor  # (levels,)


class _Geometry(NamedTuple):
    patches_to_prior: _Target
    prior_to_patches: _Target


def _levels(h: int, w: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the three maps of the prior, of an input with ``h x w`` patches."""
    return (2 * h, 2 * w), (h, w), (h // 2, w // 2)


def _geometry(h: int, w: int, device: torch.device, dtype: torch.dtype) -> _Geometry:
    prior, patches = _levels(h, w), ((h, w),)
    return _Geometry(_target(patches, prior, device, dtype), _target(prior, patches, device, dtype))


def _target(
    queries: tuple[tuple[int, int], ...], maps: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> _Target:
    points = torch.cat([_centres(rows, cols, device, dtype) for rows, cols in queries])
    starts = [sum(rows * cols for rows, cols in maps[:level]) for level in range(len(maps))]
    return _Target(
        points[None, :, None],
        torch.tensor(maps, dtype=torch.long, device=device),
        torch.tensor(starts, dtype=torch.long, device=device),
    )


def _centres(rows: int, cols: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The centres of the cells of a grid on the unit square, row by row: ``(rows * cols, 2)`` as (x, y)."""
    ys, xs = ((torch.arange(n, device=device, dtype=dtype) + 0.5) / n for n in (rows, cols))
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)


def _split(prior_BLC: Tensor, h: int, w: int) -> Iterator[Tensor]:
    """The cells of the prior as its three maps ``(B, C, rows, cols)``."""
    levels = _levels(h, w)
    parts = torch.split(prior_BLC, [rows * cols for rows, cols in levels], dim=1)
    for (rows, cols), part in zip(levels, parts, strict=True):
        yield part.transpose(1, 2).reshape(part.shape[0], part.shape[2], rows, cols)


def _conv_norm_act(channels_in: int, channels_out: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)


class SpatialPrior(nn.Module):
    """Images ``(B, 3, H, W)`` to four maps ``(B, C, ...)`` at strides 4, 8, 16 and 32."""

    def __init__(self, dim: int, planes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_act(3, planes, 2),
            *_conv_norm_act(planes, planes, 1),
            *_conv_norm_act(planes, planes, 1),
            nn.MaxPool2d(3, 2, 1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_act(planes, 2 * planes, 2))
        self.conv3 = nn.Sequential(*_conv_norm_act(2 * planes, 4 * planes, 2))
        self.conv4 = nn.Sequential(*_conv_norm_act(4 * planes, 4 * planes, 2))
        self.fc1 = nn.Conv2d(planes, dim, 1)
        self.fc2 = nn.Conv2d(2 * planes, dim, 1)
        self.fc3 = nn.Conv2d(4 * planes, dim, 1)
        self.fc4 = nn.Conv2d(4 * planes, dim, 1)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised images ``(B, 3, H, W)``, H and W multiples of 32, to the maps, fine to coarse; of any range."""
        first, *rest, pool = self.stem
        c1 = first(image_BCHW)
        for norm, then in zip(rest[::3], (*rest[2::3], pool), strict=True):
            c1 = norm_again(norm, c1, then, relu=True)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(self.conv4(c3))


class _Attend(nn.Module):
    """Queries look into features: both normalised, then deformable attention."""

    def __init__(self, dim: int, *, levels: int, heads: int, norm_eps: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.feat_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = MSDeformAttn(dim, num_levels=levels, num_heads=heads, num_points=4, ratio=0.5)

    def attend(self, query: Tensor, feat: Tensor, target: _Target) -> Tensor:
        found: Tensor = self.attn(
            self.query_norm(query), target.points, self.feat_norm(feat), target.shapes, target.starts
        )
        return found


class Injector(_Attend):
    """Adds what the patch tokens see in the prior to them, scaled by a learned ``ls`` that starts near zero."""

    def __init__(self, dim: int, *, heads: int, norm_eps: float) -> None:
        super().__init__(dim, levels=3, heads=heads, norm_eps=norm_eps)
        self.ls = LayerScale(dim, init_values=1e-5)

    def forward(self, patches_BNC: Tensor, prior_BLC: Tensor, target: _Target) -> Tensor:
        """The patch tokens ``(B, N, C)``, with what they see in the prior ``(B, L, C)``."""
        seen: Tensor = self.ls(self.attend(patches_BNC, prior_BLC, target))
        return patches_BNC + seen


class _DepthwiseConv(nn.Module):
    """A 3 x 3 depth-wise convolution of each map of the prior."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, prior_BLC: Tensor, h: int, w: int) -> Tensor:
        return torch.cat([as_table(self.dwconv(level)) for level in _split(prior_BLC, h, w)], dim=1)


class ConvFFN(nn.Module):
    """The extractor's feed-forward network: it mixes neighbouring cells, too."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, prior_BLC: Tensor, h: int, w: int) -> Tensor:
        """The prior ``(B, L, C)`` of an input with ``h x w`` patches to the same shape."""
        return gelu_again(self.dwconv(self.fc1(prior_BLC), h, w), self.fc2)


class Extractor(_Attend):
    """Adds what the prior sees in the patch tokens to it."""

    def __init__(self, dim: int, *, heads: int, norm_eps: float, drop_path: float) -> None:
        super().__init__(dim, levels=1, heads=heads, norm_eps=norm_eps)
        self.ffn = ConvFFN(dim, dim // 4)
        self.ffn_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, prior_BLC: Tensor, patches_BNC: Tensor, target: _Target, h: int, w: int) -> Tensor:
        """The prior ``(B, L, C)``, with what it sees in the ``h x w`` patch tokens ``(B, N, C)``."""
        prior_BLC = prior_BLC + self.attend(prior_BLC, patches_BNC, target)
        mixed: Tensor = self.drop_path(self.ffn(self.ffn_norm(prior_BLC), h, w))
        return prior_BLC + mixed


class Interaction(nn.Module):
    """One injector and one extractor (the last interaction has more), with the ViT's blocks between them left out."""

    def __init__(self, dim: int, *, heads: int, norm_eps: float, drop_path: float, extra: int) -> None:
        super().__init__()
        extractor = partial(Extractor, dim, heads=heads, norm_eps=norm_eps, drop_path=drop_path)
        self.injector = Injector(dim, heads=heads, norm_eps=norm_eps)
        self.extractor = extractor()
        self.extra_extractors = nn.ModuleList(extractor() for _ in range(extra))


class ViTAdapter(Freezable):
    """A ViT and its adapter: ``(B, 3, H, W)`` to four maps ``(B, C, ...)`` at strides 4, 8, 16, 32, fine to coarse.

    H and W are multiples of 32. A subclass brings the ViT: its parts under the names they have in a checkpoint, and the
    methods :meth:`tokens` and :meth:`vit_blocks`.
    """

    def __init__(
        self,
        vit_parts: Mapping[str, nn.Module | nn.Parameter],
        *,
        dim: int,
        prefix_tokens: int,
        use_summary_token: bool,
        norm_eps: float,
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
        heads: int = 16,
        planes: int = 56,
    ) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.use_summary_token = use_summary_token
        self.activation_checkpointing = activation_checkpointing
        self._geometries = SizeCache()
        for name, part in vit_parts.items():  # first, as in TAO: optimizers know parameters by their order
            setattr(self, name, part)
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.spm = SpatialPrior(dim, planes)
        self.interactions = nn.ModuleList(
            Interaction(
                dim,
                heads=heads,
                norm_eps=norm_eps,
                drop_path=drop_path,
                extra=EXTRA_EXTRACTORS if stage == INTERACTIONS - 1 else 0,
            )
            for stage in range(INTERACTIONS)
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        for level in range(1, 5):
            self.add_module(f"norm{level}", nn.BatchNorm2d(dim))
        if use_summary_token:
            self.fc_summary = nn.Linear(prefix_tokens * dim, dim)
            for level in range(1, 5):
                self.add_module(f"conv{level}", nn.Conv2d(2 * dim, dim, 1))
        self._initialise()

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        """What enters the first block: ``(B, S + N, C)``, positions included."""
        raise NotImplementedError

    def block_arguments(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """What every block takes beside the tokens."""
        return ()

    def vit_blocks(self) -> nn.ModuleList:
        """The blocks of the ViT, a multiple of four of them."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Freeze the ViT; the adapter goes on learning."""
        raise NotImplementedError

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Normalised images ``(B, 3, H, W)`` to four batch-normalised maps ``(B, C, H / stride, W / stride)``.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 32.
        """
        rows, cols = patch_grid(image_BCHW, STRIDE)
        h, w = 2 * rows, 2 * cols
        tokens_BNC, arguments = self.tokens(image_BCHW), self.block_arguments(image_BCHW)
        c1, *coarser = self.spm(image_BCHW)
        prior_BLC = torch.cat([as_table(c) + e for c, e in zip(coarser, self.level_embed, strict=True)], dim=1)
        exact = torch.promote_types(tokens_BNC.dtype, torch.float32)  # half precision cannot tell the cells apart
        place = (h, w, tokens_BNC.device, exact)
        geometry = self._geometries.get(place, partial(_geometry, *place))
        seen = []
        for stage, interaction in enumerate(self._interactions()):
            tokens_BNC = self._inject(interaction.injector, tokens_BNC, prior_BLC, geometry.patches_to_prior)
            blocks = self._stage(stage)
            tokens_BNC = run_blocks(
                blocks, tokens_BNC, *arguments, activation_checkpointing=self.activation_checkpointing
            )
            patches_BNC = tokens_BNC[:, self.prefix_tokens :]
            for extractor in (interaction.extractor, *interaction.extra_extractors):
                prior_BLC = checkpointed(
                    self.activation_checkpointing, extractor, prior_BLC, patches_BNC, geometry.prior_to_patches, h, w
                )
            seen.append(patches_BNC.transpose(1, 2).reshape(patches_BNC.shape[0], -1, h, w))
        return self._head(self._join(c1, prior_BLC, seen), tokens_BNC)

    def _interactions(self) -> Iterator[Interaction]:
        return (part for part in self.interactions if isinstance(part, Interaction))

    def _stage(self, stage: int) -> nn.ModuleList:
        blocks = self.vit_blocks()
        each = len(blocks) // INTERACTIONS
        return blocks[stage * each : (stage + 1) * each]

    def _inject(self, injector: Injector, tokens_BNC: Tensor, prior_BLC: Tensor, target: _Target) -> Tensor:
        prefix, patches = tokens_BNC[:, : self.prefix_tokens], tokens_BNC[:, self.prefix_tokens :]
        patches = checkpointed(self.activation_checkpointing, injector, patches, prior_BLC, target)
        return torch.cat((prefix, patches), dim=1)

    def _join(self, c1: Tensor, prior_BLC: Tensor, seen: list[Tensor]) -> list[Tensor]:
        """The maps of the prior and what the four stages of the ViT saw, brought to the four strides."""
        h, w = seen[0].shape[-2:]
        c2, c3, c4 = _split(prior_BLC, h, w)
        resize = partial(F.interpolate, mode="bilinear", align_corners=False)
        return [
            self.up(c2) + c1 + resize(seen[0], scale_factor=4),
            c2 + resize(seen[1], scale_factor=2),
            c3 + seen[2],
            c4 + resize(seen[3], scale_factor=0.5),
        ]

    def _head(self, maps: list[Tensor], tokens_BNC: Tensor) -> list[Tensor]:
        if self.use_summary_token:
            summary_BC = self.fc_summary(tokens_BNC[:, : self.prefix_tokens].flatten(1))
            mixers = [self.get_submodule(f"conv{level}") for level in range(1, 5)]
            maps = [mix_summary(cast(nn.Conv2d, conv), summary_BC, c) for conv, c in zip(mixers, maps, strict=True)]
        return [self.get_submodule(f"norm{level}")(c) for level, c in enumerate(maps, start=1)]

    def _initialise(self) -> None:
        for name, part in self.named_children():
            if name in ADAPTER_PARTS and name != "fc_summary":
                part.apply(_initialise_layer)
        for module in self.interactions.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()


def mix_summary(conv: nn.Conv2d, summary_BC: Tensor, map_BCHW: Tensor) -> Tensor:
    """A 1 x 1 convolution of a map that has the summary joined before its channels, at every cell.

    The summary's share is the same for all cells: it is computed once and added.
    """
    of_summary, of_map = torch.split(conv.weight, summary_BC.shape[1], dim=1)
    share_BC = F.linear(summary_BC, of_summary.flatten(1), conv.bias)
    return F.conv2d(map_BCHW, of_map) + share_BC[:, :, None, None]


def _initialise_layer(layer: nn.Module) -> None:
    """As :func:`initialise_linear`; convolutions: normal with the variance 2 / fan out, bias 0."""
    initialise_linear(layer)
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
