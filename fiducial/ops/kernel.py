"""What a kernel of the op is, and how one says that it cannot serve: what every kernel and their choice agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


class UnavailableError(Exception):
    """Why a kernel cannot be used on this machine, and what would change that."""


Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Kernel:
    """One way to compute the op.

    ``forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)`` gives ``(B, Q, M*D)``
    of value's dtype; ``backward(grad, <the same>, deterministic)`` the gradients of value, locations and weights.
    Both get contiguous tensors of one device, none of them empty; locations and weights, and the gradients returned,
    are float64 where value is float64, else float32.
    """

    name: str
    forward: Forward
    backward: Backward
