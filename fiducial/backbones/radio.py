"""C-RADIO: a ViT with summary tokens and a large position table that is cut to the input (Ranzinger et al. 2024).

Legend: B images, H x W pixels, h x w patches, N = h w, S prefix tokens (class tokens, then registers), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fiducial.backbones.vit import (
    Freezable,
    Scope,
    SizeCache,
    patch_grid,
    resize_table,
    run_blocks,
    table_side,
    vit_block,
)
from fiducial.backbones.vit_adapter import ViTAdapter

__all__ = ["GRID", "PATCH", "VARIANTS", "RadioEmbedding", "RadioPyramid", "RadioShape", "RadioViT", "build"]

PATCH = 16
GRID = 128
"""Side of the stored position table: an input of 2048 pixels."""
POSITION_DROPOUT = 0.1
MIN_CROP_AREA = 0.1
MAX_CROP_ASPECT = 4 / 3


@dataclass(frozen=True)
class RadioShape:
    """The sizes of one C-RADIO network."""

    dim: int
    depth: int
    heads: int
    class_tokens: int
    """One per teacher."""
    registers: int
    summary_tokens: int
    """The first of the class tokens, which together are the summary of the image."""
    layer_scale: float | None = None
    mlp_norm: bool = False
    align_corners: bool = True
    """How the position table is resized: TAO's way for every variant; NVIDIA's own later code has False."""

    @property
    def prefix_tokens(self) -> int:
        return self.class_tokens + self.registers


_BASE, _LARGE, _HUGE = (768, 12, 12), (1024, 24, 16), (1280, 32, 16)

VARIANTS: dict[str, RadioShape] = {
    "c_radio_p1_vit_huge_patch16_224_mlpnorm": RadioShape(*_HUGE, 3, 13, 3, mlp_norm=True),
    "c_radio_p2_vit_huge_patch16_224_mlpnorm": RadioShape(*_HUGE, 4, 12, 4, mlp_norm=True),
    "c_radio_p3_vit_huge_patch16_224_mlpnorm": RadioShape(*_HUGE, 4, 12, 3, mlp_norm=True),
    "c_radio_v2_vit_base_patch16_224": RadioShape(*_BASE, 4, 4, 3),
    "c_radio_v2_vit_large_patch16_224": RadioShape(*_LARGE, 4, 4, 3),
    "c_radio_v2_vit_huge_patch16_224": RadioShape(*_HUGE, 4, 4, 3),
    "c_radio_v3_vit_base_patch16_reg4_dinov2": RadioShape(*_BASE, 4, 4, 3, layer_scale=1e-5),
    "c_radio_v3_vit_large_patch16_reg4_dinov2": RadioShape(*_LARGE, 4, 4, 3, layer_scale=1e-5),
    # The published huge file has no layer scale, although TAO's module does.
    "c_radio_v3_vit_huge_patch16_reg4_dinov2": RadioShape(*_HUGE, 4, 4, 3),
}


class _PrefixTokens(nn.Module):
    """The class and register tokens, ``(S, C)``, under the published key ``cls_token.token``."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(count, dim) * dim**-0.5)


class PatchGenerator(nn.Module):
    """Images ``(B, 3, H, W)`` to tokens ``(B, S + N, C)``, positions added to the patches.

    In training every sample sees the table through a random crop of it, and a tenth of the samples see none, so that
    the network learns to work at any size; the noise comes from torch's global generator.
    """

    def __init__(self, dim: int, prefix_tokens: int, *, grid: int = GRID, align_corners: bool = True) -> None:
        super().__init__()
        self.draws_in_training = True
        self.align_corners = align_corners
        self.pos_embed = nn.Parameter(torch.randn(1, grid * grid, dim) * dim**-0.5)
        self.embedder = nn.Linear(3 * PATCH**2, dim, bias=False)
        self.cls_token = _PrefixTokens(prefix_tokens, dim)
        self._tables = SizeCache()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, S + N, C)``: prefix tokens, then patches row by row.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        grid = patch_grid(image_BCHW, PATCH)
        patches_BNC = self.embedder(_patches(image_BCHW, grid))
        patches_BNC = patches_BNC + (self._random_table(patches_BNC, grid) if self.training else self._table(grid))
        prefix_BSC = self.cls_token.token.to(patches_BNC.dtype).expand(patches_BNC.shape[0], -1, -1)
        return torch.cat((prefix_BSC, patches_BNC), dim=1)

    def _table(self, grid: tuple[int, int]) -> Tensor:
        """The table for this grid, ``(1, N, C)``."""
        cut = partial(cut_table, self.pos_embed, grid, align_corners=self.align_corners)
        return self._tables.get(grid, cut, self.pos_embed)

    def _random_table(self, patches_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """A table per sample, ``(B, N, C)``, or the stored one where it fits the grid exactly."""
        batch, device = patches_BNC.shape[0], patches_BNC.device
        table: Tensor = self.pos_embed
        if grid != (table_side(table),) * 2:
            table = crop_table(table, random_crops(batch, device), grid)
        keep_B11 = torch.rand(batch, 1, 1, device=device) >= POSITION_DROPOUT
        return torch.where(keep_B11, table, torch.zeros_like(table))


def _patches(image_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, N, 3 * 16 * 16)``: the pixels of each patch in the order channel, row, column."""
    rows, cols = grid
    split = image_BCHW.reshape(image_BCHW.shape[0], 3, rows, PATCH, cols, PATCH)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(image_BCHW.shape[0], rows * cols, 3 * PATCH**2)


def cut_table(table_1NC: Tensor, grid: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """The table resized to the longer side of the grid and cut to its top left part: ``(1, h * w, C)``."""
    stored, side = table_side(table_1NC), max(grid)
    if side != stored:
        table_1NC = resize_table(table_1NC, (side, side), mode="bilinear", align_corners=align_corners)
    square = table_1NC.reshape(1, side, side, -1)
    return square[:, : grid[0], : grid[1]].reshape(1, grid[0] * grid[1], -1)


def random_crops(batch: int, device: torch.device) -> Tensor:
    """Random parts of the unit square, ``(B, 2, 2)``: ``[:, 0]`` the sizes and ``[:, 1]`` the offsets, as (x, y).

    The side is uniform in [sqrt(0.1), 1], the aspect log-uniform in [3/4, 4/3]; sides are limited to 1 and the part
    lies anywhere inside the square.
    """
    noise = torch.rand(batch, 4, device=device)
    least, log_aspect = math.sqrt(MIN_CROP_AREA), math.log(MAX_CROP_ASPECT)
    side = least + (1 - least) * noise[:, 0]
    aspect = torch.exp(log_aspect * (2 * noise[:, 1] - 1))
    size = torch.stack((side * aspect, side / aspect), dim=-1).clamp(0, 1)
    return torch.stack((size, noise[:, 2:] * (1 - size)), dim=1)


def crop_table(table_1NC: Tensor, crops_B22: Tensor, grid: tuple[int, int]) -> Tensor:
    """The crops of the table, each sampled bilinearly at ``h x w`` points: ``(B, h * w, C)``.

    What ``grid_sample(align_corners=True)`` gives, in float32 or finer; but its gradient has a deterministic form on
    every device, and does not repeat the table per sample.
    """
    side, table_NC = table_side(table_1NC), table_1NC[0]
    (ys_Bh, xs_Bw) = (
        (side - 1) * (offset[:, None] + size[:, None] * torch.linspace(0, 1, count, device=size.device))
        for count, size, offset in zip(grid, crops_B22[:, 0].flip(1).T, crops_B22[:, 1].flip(1).T, strict=True)
    )
    sampled = torch.zeros((), device=table_NC.device)
    for row_Bh, part_Bh in _neighbours(ys_Bh, side):
        for col_Bw, part_Bw in _neighbours(xs_Bw, side):
            cell_BN = (row_Bh[:, :, None] * side + col_Bw[:, None]).flatten(1)
            part_BN1 = (part_Bh[:, :, None] * part_Bw[:, None]).flatten(1)[..., None]
            sampled = sampled + part_BN1 * table_NC.index_select(0, cell_BN.flatten()).view(*cell_BN.shape, -1)
    return sampled.to(table_1NC.dtype)


def _neighbours(places: Tensor, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The two cells of a line of ``side`` cells around each place, and their parts in a linear interpolation."""
    low = places.floor().clamp(0, side - 2)
    yield low.long(), low + 1 - places
    yield low.long() + 1, places - low


class RadioViT(nn.Module):
    """The network itself: ``(B, 3, H, W)`` to ``(B, S + N, C)``; H and W multiples of 16. There is no final norm."""

    def __init__(self, shape: RadioShape, *, grid: int = GRID, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.activation_checkpointing = activation_checkpointing
        self.blocks = nn.ModuleList(_block(shape) for _ in range(shape.depth))
        self.patch_generator = PatchGenerator(
            shape.dim, shape.prefix_tokens, grid=grid, align_corners=shape.align_corners
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, S + N, C)``, of any range.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        tokens = self.patch_generator(image_BCHW)
        return run_blocks(self.blocks, tokens, activation_checkpointing=self.activation_checkpointing)


def _block(shape: RadioShape) -> nn.Module:
    made = vit_block(shape.dim, shape.heads, init_values=shape.layer_scale, scale_mlp_norm=shape.mlp_norm)
    if shape.mlp_norm:
        made.mlp.norm.eps = 1e-5  # unlike the two norms of the block
    block: nn.Module = made
    return block


class RadioEmbedding(Freezable):
    """The summary of an image: ``(B, 3, H, W)`` to ``(B, summary_tokens * C)``."""

    def __init__(self, vit: RadioViT) -> None:
        super().__init__()
        self.radio = Scope("radio.model", vit)

    @property
    def vit(self) -> RadioViT:
        vit = self.radio.get_submodule("radio.model")
        assert isinstance(vit, RadioViT)
        return vit

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, summary_tokens * C)``, of any range.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        return self.summary_and_features(image_BCHW)[0]

    def summary_and_features(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The summary as above, and the patch tokens ``(B, N, C)``."""
        tokens_BNC, shape = self.vit(image_BCHW), self.vit.shape
        return tokens_BNC[:, : shape.summary_tokens].flatten(1), tokens_BNC[:, shape.prefix_tokens :]

    def freeze(self) -> None:
        """Everything is frozen, and with eval mode the random positions are off."""
        self._freeze("")


class RadioPyramid(ViTAdapter):
    """C-RADIO with a ViT-Adapter: four maps at strides 4, 8, 16 and 32, each of C channels; H and W multiples of 32."""

    def __init__(self, vit: RadioViT, *, use_summary_token: bool = True, **sizes: int) -> None:
        super().__init__(
            {"radio": Scope("radio.radio.model", vit)},
            dim=vit.shape.dim,
            prefix_tokens=vit.shape.prefix_tokens,
            use_summary_token=use_summary_token,
            norm_eps=1e-5,
            activation_checkpointing=vit.activation_checkpointing,
            **sizes,
        )

    @property
    def vit(self) -> RadioViT:
        vit = self.get_submodule("radio.radio.radio.model")
        assert isinstance(vit, RadioViT)
        return vit

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        tokens: Tensor = self.vit.patch_generator(image_BCHW)
        return tokens

    def vit_blocks(self) -> nn.ModuleList:
        return self.vit.blocks

    def freeze(self) -> None:
        """The ViT is frozen, the adapter trains."""
        self._freeze("radio")


def build(
    name: str,
    role: str,
    *,
    image_size: tuple[int, int],
    use_summary_token: bool = True,
    activation_checkpointing: bool = False,
) -> nn.Module:
    """See :mod:`fiducial.backbones.names`. Any input size works, whatever ``image_size`` says."""
    vit = RadioViT(VARIANTS[name], activation_checkpointing=activation_checkpointing)
    return RadioPyramid(vit, use_summary_token=use_summary_token) if role == "pyramid" else RadioEmbedding(vit)
