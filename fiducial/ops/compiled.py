# mypy: disable-error-code="no-untyped-call"
"""The compiled kernels of ``csrc/``: loading them, and what is left to torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fiducial.ops import build, reference
from fiducial.ops.kernel import Backward, Forward, UnavailableError

_ARGUMENTS = "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor locations, Tensor weights"
SCHEMAS = (
    "message_passing_into(Tensor affinity, Tensor box, Tensor(a!) x, int num_iter, int radius, float low, float high)"
    " -> ()",
    f"ms_deform_attn_into({_ARGUMENTS}, Tensor(a!) out) -> ()",
    f"ms_deform_attn_backward_into(Tensor grad, {_ARGUMENTS}, Tensor(a!)? d_value, Tensor(b!) d_locations,"
    " Tensor(c!) d_weights) -> ()",
)
"""What the libraries implement: they write into tensors that torch has allocated, and allocate nothing themselves."""

_LIB = torch.library.Library("fiducial", "FRAGMENT")
for _schema in SCHEMAS:
    _LIB.define(_schema)


def load(device: str) -> tuple[Forward, Backward]:
    """The kernels of deformable attention for ``cpu`` or ``cuda``, built first if need be.

    Raises: UnavailableError.
    """
    load_library(device)
    return _forward, _backward


def load_library(device: str) -> None:
    """Let torch know all kernels for ``cpu`` or ``cuda``, built first if need be.

    Raises: UnavailableError.
    """
    path = build.library("cuda" if device == "cuda" else "cpu")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise UnavailableError(
            f"{path} does not load: {error.__cause__ or error}; delete it to build it anew"
        ) from error


def _forward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    dtype = value.dtype
    value = _readable(value, locations)
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    torch.ops.fiducial.ms_deform_attn_into(value, shapes, starts, locations, weights, out)
    return out.to(dtype)


def _backward(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    d_locations, d_weights = torch.empty_like(locations), torch.empty_like(weights)
    value, grad = _readable(value, locations), _readable(grad, locations)
    sums_in_turn = value.is_cuda and deterministic  # the GPU kernel adds in whatever order its threads come
    d_value = None if sums_in_turn else torch.zeros_like(value, dtype=locations.dtype)
    torch.ops.fiducial.ms_deform_attn_backward_into(
        grad, value, shapes, starts, locations, weights, d_value, d_locations, d_weights
    )
    if d_value is None:
        d_value = reference.value_gradient(grad, value, shapes, starts, locations, weights)
    return d_value, d_locations, d_weights


def _readable(tensor: Tensor, locations: Tensor) -> Tensor:
    """The CPU kernel reads float32 and float64; the GPU's reads half precision as it is."""
    return tensor if tensor.is_cuda else tensor.to(locations.dtype)
