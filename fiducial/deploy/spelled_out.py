"""Operators of torch that not every exporter and operator set has, in ones that they all have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SpelledOut"]


class SpelledOut(TorchFunctionMode):
    """Within the block, what is traced holds simpler operators: ONNX got the ones replaced with sets 13 and 14.

    The newer exporter refuses attention over more than four dimensions, too.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _SIMPLER.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Attention without a mask, spelled out; any other is what it was. A frozen network drops nothing out."""
    if attn_mask is not None or args or kwargs.get("is_causal") or kwargs.get("enable_gqa"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    scale = kwargs.get("scale")
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    mixed: Tensor = (scaled @ key.transpose(-2, -1)).softmax(-1) @ value
    return mixed


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    before = dim % x.ndim
    return x.reshape(*x.shape[:before], *sizes, *x.shape[before + 1 :])


def _tile(x: Tensor, *dims: Any) -> Tensor:
    return x.repeat(*dims)


_SIMPLER: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    torch.unflatten: _unflatten,
    Tensor.unflatten: _unflatten,
    torch.tile: _tile,
    Tensor.tile: _tile,
}
