"""Plain vision transformers of ViT-MAE and DeiT: one feature map at the stride of a patch.

The blocks are timm's. Keys of the files that MAE, DeiT and timm publish are this module's own; only the position
table is resampled to the size of the image, in every forward, as timm does it.
"""

from __future__ import annotations

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fiducial.backbones.vit import GeluMlp, MapBackbone, SizeCache, ViTBlock
from fiducial.backbones.vit_names import ViTSize, parse_vit
from fiducial.ops.linear import use_fast_linears

__all__ = ["ViTEncoder", "build_vit"]


_TABLE_SIDE = 224
"""Published position tables are those of images of this side."""


class ViTEncoder(MapBackbone, VisionTransformer):
    """timm's transformer, giving the tokens as a map."""

    def __init__(self, size: ViTSize, patch: int, *, drop_path: float = 0.0, activation_checkpointing: bool = False):
        super().__init__(
            img_size=_TABLE_SIDE,
            patch_size=patch,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
            num_classes=1000,  # unused, but part of every published file and of TAO's checkpoints
            drop_path_rate=drop_path,
            block_fn=ViTBlock,
            mlp_layer=GeluMlp,
            dynamic_img_size=True,
        )
        self.head.requires_grad_(False)  # several processes would wait for its gradients
        self.patch = patch
        self._tables = SizeCache()
        self.set_grad_checkpointing(activation_checkpointing)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]  # timm's own takes an attention mask
        """``(B, 3, H, W)``, sides divisible by the patch, to ``(B, D, H/patch, W/patch)``.

        Raises: ValueError for other sides.
        """
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"an image of {height} x {width} for patches of {self.patch}: sides must be multiples")
        tokens: Tensor = self.forward_features(image)[:, 1:]
        return tokens.transpose(1, 2).reshape(image.shape[0], -1, height // self.patch, width // self.patch)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """timm's, with the table of a size kept while nothing changes it."""
        grid = [int(side) for side in x.shape[1:3]]
        table = self._tables.get(tuple(grid), lambda: self._table(grid), self.pos_embed)
        assert self.cls_token is not None  # it has one: timm's type covers others
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1)
        placed: Tensor = self.pos_drop(tokens + table)
        return placed

    def _table(self, grid: list[int]) -> Tensor:
        table: Tensor = resample_abs_pos_embed(
            self.pos_embed, new_size=grid, old_size=list(self.patch_embed.grid_size), num_prefix_tokens=1
        )
        return table


def build_vit(arch: str, *, drop_path: float = 0.0, activation_checkpointing: bool = False) -> ViTEncoder:
    """The untrained encoder of a name such as ``vit-mae-base/16``. Raises: ValueError for an unknown name."""
    size, patch = parse_vit(arch)
    encoder = ViTEncoder(size, patch, drop_path=drop_path, activation_checkpointing=activation_checkpointing)
    use_fast_linears(encoder)
    return encoder
