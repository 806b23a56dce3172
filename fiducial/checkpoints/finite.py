"""Whether tensors hold numbers: a training that diverged leaves none behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor

__all__ = ["GRADIENTS", "not_finite"]

GRADIENTS = "accumulated_gradients"
"""The entry of a checkpoint that was written in the middle of a step, with what the batches before have contributed."""


def not_finite(checkpoint: Mapping[str, Any]) -> str:
    """The first tensor of a Lightning checkpoint's weights or kept gradients that is not finite; empty if all are.

    An additive mask (0 and minus infinity) is what it should be.
    """
    parts = (checkpoint.get("state_dict"), checkpoint.get(GRADIENTS))
    named: Iterable[tuple[str, Any]] = chain.from_iterable(part.items() for part in parts if isinstance(part, Mapping))
    return next((str(name) for name, value in named if isinstance(value, Tensor) and not _is_sound(value)), "")


def _is_sound(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
        return True
    return tensor.ndim > 1 and bool(((tensor == 0) | (tensor == float("-inf"))).all())
