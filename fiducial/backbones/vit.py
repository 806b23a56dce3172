"""What the transformer backbones share: frozen parts, tables kept per input size, blocks that trade time for memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable
from functools import partial
from typing import Any, Self, TypeVar

import torch
from timm.layers.mlp import GluMlp, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fiducial.backbones.recompute import gelu_again, norm_again, swiglu_again
from fiducial.backbones.sizes import check_images

T = TypeVar("T")

KEPT_SIZES = 8
"""Input sizes whose tables a :class:`SizeCache` holds at a time."""


class Freezable(nn.Module):
    """A module whose frozen parts take no gradient and stay in eval mode, whatever ``train()`` says."""

    _frozen: tuple[str, ...] = ()

    def _freeze(self, *names: str) -> None:
        """Freeze submodules or parameters by their dotted names; ``""`` is the module itself."""
        for name in names:
            part = _at(self, name)
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()
        self._frozen += names

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            for name in self._frozen:
                part = _at(self, name)
                if isinstance(part, nn.Module):
                    part.eval()
        return self


class MapBackbone(Freezable):
    """``(B, 3, H, W)`` to one map, ``(B, C, H / stride, W / stride)``. Its blocks are numbered from 1."""

    blocks: Any

    def freeze_stages(self, stages: Collection[int]) -> set[int]:
        """Keep parts as they are while training: 0 the patch embedding, 1 and up the blocks.

        Returns the numbers that no part has.
        """
        names = {0: "patch_embed", **{place + 1: f"blocks.{place}" for place in range(len(self.blocks))}}
        self._freeze(*(names[stage] for stage in sorted(stages) if stage in names))
        return set(stages) - names.keys()


def _at(module: nn.Module, name: str) -> nn.Module | nn.Parameter:
    part: Any = module
    for step in filter(None, name.split(".")):
        part = getattr(part, step)
    checked: nn.Module | nn.Parameter = part
    return checked


class Scope(nn.Module):
    """Holds one module under a name: a component of a checkpoint key, nothing else."""

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__()
        first, _, rest = path.partition(".")
        self.add_module(first, Scope(rest, module) if rest else module)


class SizeCache:
    """Keeps what depends on the input size, and perhaps on a parameter, between calls.

    A value made from a parameter is kept only while that is frozen (some optimizers write behind torch's back), and
    dropped when it is replaced or written to. What is there when ``torch.export`` or an ONNX export runs becomes a
    constant of the graph, so run the module once on the size before; otherwise, and always in ``torch.compile``, the
    computation is part of the graph. A copied or pickled cache is empty.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}
        self._made_from: tuple[weakref.ref[Tensor], int, int] | None = None

    def __reduce__(self) -> tuple[type[SizeCache], tuple[()]]:
        return SizeCache, ()

    def clear(self) -> None:
        self._kept.clear()
        self._made_from = None

    def get(self, key: Hashable, make: Callable[[], T], source: Tensor | None = None) -> T:
        """``make()``, or what it gave for this key before. ``source``: the parameter that it reads."""
        if torch.compiler.is_dynamo_compiling():
            return make()
        if torch.compiler.is_compiling():  # torch.export: parameters, and what is made of them, are placeholders here
            found: T = self._kept[key] if key in self._kept and self._is_current() else make()
            return found
        if source is not None:
            if source.is_inference() or source.requires_grad:
                return make()
            if self._made_from is None or self._made_from[0]() is not source or not self._is_current():
                self.clear()
                self._made_from = (weakref.ref(source), source._version, source.data_ptr())
        if key not in self._kept:
            if len(self._kept) >= KEPT_SIZES:
                self._kept.clear()
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training
                self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def _is_current(self) -> bool:
        """Whether the parameter is as it was when the kept values were made."""
        if self._made_from is None:
            return True
        source = self._made_from[0]()
        return source is not None and self._made_from[1:] == (source._version, source.data_ptr())


def checkpointed(enabled: bool, function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``; when enabled, its activations are computed again in the backward pass instead of kept."""
    if enabled and torch.is_grad_enabled():
        result: T = checkpoint(function, *args, use_reentrant=False)
        return result
    return function(*args)


class GeluMlp(Mlp):
    """timm's; its GELU is not kept for the backward pass, and what ``norm`` makes neither."""

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """``(..., D)``, normed by ``norm`` before all else, to ``(..., D)``, of any range."""
        out: Tensor = self.drop2(gelu_again(_hidden(self, x, norm), partial(_out, self)))
        return out


class SwiGluMlp(GluMlp):
    """timm's ``SwiGLUPacked``, as :class:`GeluMlp`."""

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """``(..., D)``, normed by ``norm`` before all else, to ``(..., D)``, of any range."""
        out: Tensor = self.drop2(swiglu_again(_hidden(self, x, norm), partial(_out, self)))
        return out


def _hidden(mlp: Mlp | GluMlp, x: Tensor, norm: nn.Module | None) -> Tensor:
    hidden: Tensor = mlp.fc1(x) if norm is None else norm_again(norm, x, mlp.fc1)
    return hidden


def _out(mlp: Mlp | GluMlp, active: Tensor) -> Tensor:
    out: Tensor = mlp.fc2(mlp.norm(mlp.drop1(active)))
    return out


class ViTBlock(Block):
    """timm's pre-norm block; what its norms make is not kept for the backward pass."""

    def forward(self, x_BNC: Tensor) -> Tensor:  # type: ignore[override]  # timm's own takes an attention mask
        """``(B, N, C)`` to ``(B, N, C)``, of any range."""
        x_BNC = x_BNC + self.drop_path1(self.ls1(norm_again(self.norm1, x_BNC, self.attn)))
        x_BNC = x_BNC + self.drop_path2(self.ls2(self.mlp(x_BNC, self.norm2)))
        return x_BNC


def vit_block(dim: int, heads: int, **options: Any) -> Any:
    """timm's pre-norm block, with the biases and the norm (eps 1e-6) that all our ViTs have."""
    make: Any = ViTBlock
    options = {"mlp_layer": GeluMlp, **options}
    return make(dim, heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **options)


def initialise_linear(layer: nn.Module) -> None:
    """Linear layers: weights normal with deviation 0.02, bias 0. Other layers are left alone."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


def run_blocks(
    blocks: Iterable[nn.Module], tokens: Tensor, *arguments: Tensor, activation_checkpointing: bool
) -> Tensor:
    """Tokens ``(B, N, C)`` through transformer blocks, each of which takes ``arguments``, too."""
    for block in blocks:
        tokens = checkpointed(activation_checkpointing, block, tokens, *arguments)
    return tokens


def patch_grid(image: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of the square cells of images ``(B, 3, H, W)``.

    Raises: ValueError for another shape, or when a side of the image is no multiple of the cell's.
    """
    height, width = check_images(image, multiple=patch)
    return int(height) // patch, int(width) // patch  # a size of its own for every graph: tables depend on it


def resize_table(table_1NC: Tensor, size: tuple[int, int], *, mode: str, align_corners: bool) -> Tensor:
    """A square position table ``(1, N, C)`` resized to ``(1, size[0] * size[1], C)``, in float32 or finer."""
    resized = F.interpolate(as_map(table_1NC), size=size, mode=mode, align_corners=align_corners)
    return as_table(resized).to(table_1NC.dtype)


def scale_table(table_1NC: Tensor, factors: tuple[float, float]) -> Tensor:
    """The same by factors, bicubic: torch then samples at positions given by the factors, not by the sizes."""
    resized = F.interpolate(as_map(table_1NC), scale_factor=factors, mode="bicubic", align_corners=False)
    return as_table(resized).to(table_1NC.dtype)


def table_side(table_1NC: Tensor) -> int:
    """Rows (and columns) of a square table. Raises: ValueError when it is not square."""
    side = math.isqrt(table_1NC.shape[1])
    if side * side != table_1NC.shape[1]:
        raise ValueError(f"a position table of {table_1NC.shape[1]} entries is not square")
    return side


def as_map(table_1NC: Tensor) -> Tensor:
    """A square table as ``(1, C, side, side)``, in float32 or finer: positions are resized and sampled there."""
    side = table_side(table_1NC)
    exact = table_1NC.to(torch.promote_types(table_1NC.dtype, torch.float32))
    return exact.reshape(1, side, side, -1).permute(0, 3, 1, 2)


def as_table(map_BCHW: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H * W, C)``."""
    return map_BCHW.flatten(2).transpose(1, 2)
