"""DINOv3: timm's ViT with rotary positions and four registers, as an embedding and, with a ViT-Adapter, as a pyramid.

Legend: B images, h x w patches, N = h w, S = 5 prefix tokens (the class token, then the registers), C channels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from fiducial.backbones.vit import Freezable, SizeCache, patch_grid, run_blocks
from fiducial.backbones.vit_adapter import ViTAdapter

__all__ = ["PATCH", "PREFIX_TOKENS", "DinoV3Embedding", "DinoV3Pyramid", "build", "build_vit"]

PATCH = 16
PREFIX_TOKENS = 5
DROP_PATH = 0.4
"""Of the pyramid's extractors; the ViT has none."""


def build_vit(name: str, **sizes: Any) -> nn.Module:
    """timm's untrained model of a spec's name (``vit_small_dinov3``); ``sizes`` replace its own."""
    kind = name.removeprefix("vit_").removesuffix("_dinov3")
    return timm.create_model(f"vit_{kind}_patch16_dinov3", pretrained=False, num_classes=0, **sizes)  # type: ignore[no-any-return]


class _Positions:
    """The rotary tables of a ViT, one for each size of its input."""

    def __init__(self) -> None:
        self._tables = SizeCache()

    def of(self, vit: Any, image_BCHW: Tensor) -> Tensor:
        """Sines and cosines of every patch, ``(N, 2 * C / heads)``, which all blocks take."""
        grid = patch_grid(image_BCHW, PATCH)
        table: Tensor = self._tables.get((grid, image_BCHW.device), partial(vit.rope.get_embed, shape=grid))
        return table


def _embed(vit: Any, image_BCHW: Tensor) -> Tensor:
    """Class token, registers and patches: ``(B, S + N, C)``. They hold no positions: those turn every block's queries.

    Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
    """
    patch_grid(image_BCHW, PATCH)
    patches_BNC = vit.patch_embed(image_BCHW).flatten(1, 2)
    prefix = (
        token.to(patches_BNC.dtype).expand(patches_BNC.shape[0], -1, -1) for token in (vit.cls_token, vit.reg_token)
    )
    return torch.cat((*prefix, patches_BNC), dim=1)


class DinoV3Embedding(Freezable):
    """The class token after the final norm: ``(B, 3, H, W)`` to ``(B, C)``; H and W multiples of 16."""

    def __init__(self, vit: nn.Module, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.inner: Any = vit
        self.activation_checkpointing = activation_checkpointing
        self._positions = _Positions()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to ``(B, C)``, of mean 0 and variance 1 before the norm's weight and bias.

        Raises: ValueError unless there are 3 channels, and H and W are multiples of 16.
        """
        vit, tokens_BNC = self.inner, _embed(self.inner, image_BCHW)
        positions = self._positions.of(vit, image_BCHW)
        tokens_BNC = run_blocks(
            vit.blocks, tokens_BNC, positions, activation_checkpointing=self.activation_checkpointing
        )
        embedding_BC: Tensor = vit.norm(tokens_BNC[:, 0])
        return embedding_BC

    def freeze(self) -> None:
        """Everything is frozen."""
        self._freeze("")


class DinoV3Pyramid(ViTAdapter):
    """DINOv3 with a ViT-Adapter: four maps at strides 4, 8, 16 and 32, each of C channels; H and W multiples of 32.

    The final norm exists for the sake of the checkpoints only.
    """

    def __init__(
        self,
        vit: Any,
        *,
        use_summary_token: bool = True,
        activation_checkpointing: bool = False,
        **sizes: int,
    ) -> None:
        vit.norm.requires_grad_(False)  # never used: distributed training would wait for its gradient
        super().__init__(
            {"vit": vit},
            dim=vit.embed_dim,
            prefix_tokens=PREFIX_TOKENS,
            use_summary_token=use_summary_token,
            norm_eps=1e-5,
            drop_path=DROP_PATH,
            activation_checkpointing=activation_checkpointing,
            **sizes,
        )
        self._positions = _Positions()

    vit: Any

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        return _embed(self.vit, image_BCHW)

    def block_arguments(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self._positions.of(self.vit, image_BCHW),)

    def vit_blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.vit.blocks
        return blocks

    def freeze(self) -> None:
        """The ViT is frozen, the adapter trains."""
        self._freeze("vit")


def build(
    name: str,
    role: str,
    *,
    image_size: tuple[int, int],
    use_summary_token: bool = True,
    activation_checkpointing: bool = False,
) -> nn.Module:
    """See :mod:`fiducial.backbones.names`. Any input size works, whatever ``image_size`` says."""
    vit = build_vit(name)
    if role == "pyramid":
        return DinoV3Pyramid(
            vit, use_summary_token=use_summary_token, activation_checkpointing=activation_checkpointing
        )
    return DinoV3Embedding(vit, activation_checkpointing=activation_checkpointing)
