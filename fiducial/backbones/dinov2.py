"""NVDINOv2: NVIDIA's DINOv2 ViT-L with packed SwiGLU, as an embedding (patch 14) and as a pyramid (patch 16).

Legend: B images, h x w patches, N = h w, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from fiducial.backbones.vit import (
    Freezable,
    SizeCache,
    SwiGluMlp,
    initialise_linear,
    patch_grid,
    resize_table,
    run_blocks,
    scale_table,
    table_side,
    vit_block,
)
from fiducial.backbones.vit_adapter import ViTAdapter

__all__ = [
    "EMBEDDING_GRID",
    "EMBEDDING_PATCH",
    "PYRAMID_PATCH",
    "VARIANTS",
    "DinoV2Embedding",
    "DinoV2Pyramid",
    "DinoV2Shape",
    "build",
    "pyramid_grid",
]

EMBEDDING_PATCH = 14
EMBEDDING_GRID = 37
"""Side of the embedding's position table, whatever the input: 518 pixels, as the published weights have it."""
PYRAMID_PATCH = 16
DROP_PATH = 0.4
"""Of the pyramid: reached linearly over the ViT's blocks, constant in the extractors."""
SCALE_OFFSET = 0.1
"""DINO adds it to the wanted grid side before it divides by the stored one; the sampling positions depend on it."""


@dataclass(frozen=True)
class DinoV2Shape:
    """The sizes of one NVDINOv2 network."""

    dim: int
    depth: int
    heads: int
    hidden: int
    """Width of the MLP's first layer, both halves of the SwiGLU."""


VARIANTS: dict[str, DinoV2Shape] = {"vit_large_nvdinov2": DinoV2Shape(1024, 24, 16, 5472)}


class _ViTParts:
    """The parts of the ViT, under the names that the published files give them."""

    def __init__(self, shape: DinoV2Shape, *, patch: int, grid: int, drop_path: float = 0.0) -> None:
        rates = torch.linspace(0, drop_path, shape.depth, device="cpu").tolist()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, shape.dim))
        self.patch_embed: nn.Module = PatchEmbed(img_size=None, patch_size=patch, embed_dim=shape.dim)
        self.blocks = nn.ModuleList(_block(shape, rate) for rate in rates)
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)
        self.blocks.apply(initialise_linear)


def _block(shape: DinoV2Shape, drop_path: float) -> nn.Module:
    block: nn.Module = vit_block(
        shape.dim,
        shape.heads,
        mlp_ratio=shape.hidden / shape.dim,
        init_values=1e-5,
        drop_path=drop_path,
        act_layer=nn.SiLU,
        mlp_layer=partial(SwiGluMlp, gate_last=False),
    )
    return block


def _embed(parts: DinoV2Embedding | DinoV2Pyramid, image_BCHW: Tensor, positions_1NC: Tensor) -> Tensor:
    """Class token and patches with their positions: ``(B, 1 + N, C)``."""
    patches_BNC = parts.patch_embed(image_BCHW)
    cls_B1C = parts.cls_token.to(patches_BNC.dtype).expand(patches_BNC.shape[0], -1, -1)
    return torch.cat((cls_B1C, patches_BNC), dim=1) + positions_1NC


def scaled_positions(table_1NC: Tensor, grid: tuple[int, int]) -> Tensor:
    """The table ``(1, 1 + side**2, C)`` for a grid, by DINO's rule: bicubic, by the factors ``(g + 0.1) / side``."""
    side = table_side(table_1NC[:, 1:])
    if grid == (side, side):
        return table_1NC
    factors = ((grid[0] + SCALE_OFFSET) / side, (grid[1] + SCALE_OFFSET) / side)
    return torch.cat((table_1NC[:, :1], scale_table(table_1NC[:, 1:], factors)), dim=1)


def resized_positions(table_1NC: Tensor, grid: tuple[int, int]) -> Tensor:
    """The table for a grid, by the rule of the adapter and of loading: bicubic, to the size of the grid."""
    side = table_side(table_1NC[:, 1:])
    if grid == (side, side):
        return table_1NC
    patches = resize_table(table_1NC[:, 1:], grid, mode="bicubic", align_corners=False)
    return torch.cat((table_1NC[:, :1], patches), dim=1)


class DinoV2Embedding(Freezable):
    """The class token after the final norm: ``(B, 3, H, W)`` to ``(B, C)``; H and W multiples of 14."""

    def __init__(
        self, shape: DinoV2Shape, *, grid: int = EMBEDDING_GRID, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        parts = _ViTParts(shape, patch=EMBEDDING_PATCH, grid=grid)
        self.activation_checkpointing = activation_checkpointing
        self._positions = SizeCache()
        self.cls_token, self.pos_embed = parts.cls_token, parts.pos_embed
        self.patch_embed, self.blocks, self.norm = parts.patch_embed, parts.blocks, parts.norm

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, C)``, of mean 0 and variance 1 before the norm's weight and bias.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 14.
        """
        grid = patch_grid(image_BCHW, EMBEDDING_PATCH)
        positions = self._positions.get(grid, partial(scaled_positions, self.pos_embed, grid), self.pos_embed)
        tokens = _embed(self, image_BCHW, positions)
        tokens = run_blocks(self.blocks, tokens, activation_checkpointing=self.activation_checkpointing)
        embedding: Tensor = self.norm(tokens[:, 0])
        return embedding

    def freeze(self) -> None:
        """Everything is frozen."""
        self._freeze("")


class DinoV2Pyramid(ViTAdapter):
    """NVDINOv2 with a ViT-Adapter: four maps at strides 4, 8, 16 and 32, each of C channels; H and W multiples of 32.

    The class token is always mixed into the maps. The final norm exists for the sake of the checkpoints only.
    """

    def __init__(self, shape: DinoV2Shape, *, grid: int, activation_checkpointing: bool = False, **sizes: int) -> None:
        parts = _ViTParts(shape, patch=PYRAMID_PATCH, grid=grid, drop_path=DROP_PATH)
        parts.norm.requires_grad_(False)  # never used: distributed training would wait for its gradient
        super().__init__(
            vars(parts),
            dim=shape.dim,
            prefix_tokens=1,
            use_summary_token=True,
            norm_eps=1e-6,
            drop_path=DROP_PATH,
            activation_checkpointing=activation_checkpointing,
            **sizes,
        )
        self._positions = SizeCache()

    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    patch_embed: nn.Module
    blocks: nn.ModuleList

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        grid = patch_grid(image_BCHW, PYRAMID_PATCH)
        positions = self._positions.get(grid, partial(resized_positions, self.pos_embed, grid), self.pos_embed)
        return _embed(self, image_BCHW, positions)

    def vit_blocks(self) -> nn.ModuleList:
        return self.blocks

    def freeze(self) -> None:
        """The ViT is frozen except its class token; the adapter trains."""
        self._freeze("pos_embed", "patch_embed", "blocks", "norm")


def pyramid_grid(image_size: Sequence[int]) -> int:
    """Side of the pyramid's position table for inputs of ``(height, width)``: that of the longer side."""
    return max(image_size) // PYRAMID_PATCH


def build(
    name: str,
    role: str,
    *,
    image_size: tuple[int, int],
    use_summary_token: bool = True,
    activation_checkpointing: bool = False,
) -> nn.Module:
    """See :mod:`fiducial.backbones.names`. Other sizes than ``image_size`` work; positions are then interpolated."""
    # TAO-compat: use_summary_token is not obeyed by this family; its checkpoints always hold the summary's layers.
    shape = VARIANTS[name]
    if role == "pyramid":
        grid = pyramid_grid(image_size)
        return DinoV2Pyramid(shape, grid=grid, activation_checkpointing=activation_checkpointing)
    return DinoV2Embedding(shape, activation_checkpointing=activation_checkpointing)
