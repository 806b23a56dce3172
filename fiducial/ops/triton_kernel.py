# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
"""The kernels in Triton: for GPUs on machines without nvcc.

A program makes BLOCK_N rows of the output, all channels of each; ``csrc/ms_deform_attn_cuda.cu`` is the same in C++.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fiducial.ops import reference
from fiducial.ops.kernel import Backward, Forward, UnavailableError


def load(device: str) -> tuple[Forward, Backward]:
    """The kernels, once a small run has shown that Triton works here.

    Raises: UnavailableError.
    """
    if device == "cpu" and not triton.knobs.runtime.interpret:
        raise UnavailableError("it runs on GPUs, and on a CPU only interpreted (TRITON_INTERPRET=1)")
    pixel = torch.zeros(1, 1, 1, 1, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        _forward(pixel, index.new_ones(1, 2), index, pixel.new_zeros(1, 1, 1, 1, 1, 2), pixel.view(1, 1, 1, 1, 1))
    except Exception as error:  # what a missing driver or C compiler raises differs from version to version
        raise UnavailableError(f"it fails here: {error}") from error
    return _forward, _backward


def _grid(value: Tensor, locations: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Blocks to launch, and the sizes and options that a kernel is told."""
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    block_d = triton.next_power_of_2(channels)
    block_n = max(1, 1024 // block_d)
    outputs = batch * queries * heads
    sizes = {"outputs": outputs, "S": pixels, "Q": queries, "M": heads, "D": channels, "L": levels, "P": points}
    options = {"BLOCK_N": block_n, "BLOCK_D": block_d, "enable_fp_fusion": True}
    return (triton.cdiv(outputs, block_n),), {**sizes, **options}


def _forward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    grid, sizes = _grid(value, locations)
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    with torch.cuda.device_of(value):
        _forward_kernel[grid](value, shapes, starts, locations, weights, out, **sizes)
    return out


def _backward(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grid, sizes = _grid(value, locations)
    d_value = torch.zeros_like(value, dtype=locations.dtype)
    d_locations, d_weights = torch.empty_like(locations), torch.empty_like(weights)
    with torch.cuda.device_of(value):
        _backward_kernel[grid](
            grad, value, shapes, starts, locations, weights, d_value, d_locations, d_weights,
            **sizes, SCATTER=not deterministic,
        )  # fmt: skip
    if deterministic:
        d_value = reference.value_gradient(grad, value, shapes, starts, locations, weights)
    return d_value, d_locations, d_weights


@triton.jit
def _point(shapes, starts, locations, n, live, i, S, L: tl.constexpr, P: tl.constexpr):
    """Where the i-th points of the rows n lie: whether they reach the level, its size and start, and the place."""
    level = i // P
    height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
    start = tl.load(starts + level)
    at = (n * L * P + i) * 2
    x = tl.load(locations + at, mask=live, other=-9.0)
    y = tl.load(locations + at + 1, mask=live, other=-9.0)
    beyond = tl.where((start >= 0) & (start + height * width <= S), 0.5, float("inf"))  # a level that does not fit
    x = x * width.to(x.dtype) - beyond
    y = y * height.to(y.dtype) - beyond
    found = live & (x > -1) & (x < width.to(x.dtype)) & (y > -1) & (y < height.to(y.dtype))  # false for NaN
    return found, height, width, start, tl.where(found, x, 0.0), tl.where(found, y, 0.0)


@triton.jit
def _corner(x, y, found, height, width, start, k: tl.constexpr):
    """The k-th pixel around the places (top left, top right, bottom left, bottom right): whether it exists, where,
    and its two bilinear weights.
    """
    left, top = tl.floor(x), tl.floor(y)
    column, line = left.to(tl.int64) + k % 2, top.to(tl.int64) + k // 2
    inside = found & (column >= 0) & (column < width) & (line >= 0) & (line < height)
    along_x = x - left if k % 2 else 1 - (x - left)
    along_y = y - top if k // 2 else 1 - (y - top)
    return inside, start + line * width + column, along_x, along_y


@triton.jit
def _forward_kernel(
    value, shapes, starts, locations, weights, out, outputs, S, Q, M,
    D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    live = n < outputs
    head = n // (Q * M) * S * M + n % M
    exact = locations.dtype.element_ty
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=exact)
    for i in range(L * P):
        found, height, width, start, x, y = _point(shapes, starts, locations, n, live, i, S, L, P)
        weight = tl.load(weights + n * L * P + i, mask=live, other=0.0)
        for k in tl.static_range(4):
            inside, pixel, along_x, along_y = _corner(x, y, found, height, width, start, k)
            row = value + (head + pixel * M)[:, None] * D + d[None, :]
            number = tl.load(row, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(exact)
            total += number * tl.where(inside, weight * along_x * along_y, 0.0)[:, None]
    place = out + n[:, None] * D + d[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])


@triton.jit
def _backward_kernel(
    grad, value, shapes, starts, locations, weights, d_value, d_locations, d_weights, outputs, S, Q, M,
    D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SCATTER: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    live = n < outputs
    head = n // (Q * M) * S * M + n % M
    exact = locations.dtype.element_ty
    own = live[:, None] & (d < D)[None, :]
    g = tl.load(grad + n[:, None] * D + d[None, :], mask=own, other=0.0).to(exact)
    for i in range(L * P):
        found, height, width, start, x, y = _point(shapes, starts, locations, n, live, i, S, L, P)
        weight = tl.load(weights + n * L * P + i, mask=live, other=0.0)
        d_weight = tl.zeros((BLOCK_N,), dtype=exact)
        d_x = tl.zeros((BLOCK_N,), dtype=exact)
        d_y = tl.zeros((BLOCK_N,), dtype=exact)
        for k in tl.static_range(4):
            inside, pixel, along_x, along_y = _corner(x, y, found, height, width, start, k)
            row = (head + pixel * M)[:, None] * D + d[None, :]
            mask = inside[:, None] & (d < D)[None, :]
            dot = tl.sum(g * tl.load(value + row, mask=mask, other=0.0).to(exact), 1)
            d_weight += dot * along_x * along_y
            d_x += dot * along_y if k % 2 else -dot * along_y
            d_y += dot * along_x if k // 2 else -dot * along_x
            if SCATTER:
                tl.atomic_add(d_value + row, g * (weight * along_x * along_y)[:, None], mask=mask, sem="relaxed")
        at = n * L * P + i
        tl.store(d_weights + at, tl.where(found, d_weight, 0.0), mask=live)
        tl.store(d_locations + 2 * at, tl.where(found, d_x * weight, 0.0) * width.to(exact), mask=live)
        tl.store(d_locations + 2 * at + 1, tl.where(found, d_y * weight, 0.0) * height.to(exact), mask=live)
