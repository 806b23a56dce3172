"""Multi-scale deformable attention in plain torch: exact on every device, deterministic, the measure of the others.

Legend: B batch, S pixels of all levels together, M heads, D channels of a head, Q queries, L levels, P points of a
level, N = B*Q*M outputs, K = L*P*4 corners that one output reads.

Every output is a weighted sum of K rows of ``value``, seen as a table of rows of D: that is an embedding bag. Its
gradient for ``value`` is the same sum with the roles of rows and outputs exchanged, again an embedding bag, over the
corners ordered by row. Neither uses atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Corners(NamedTuple):
    """The four pixels around each sampling point, last axis: top left, top right, bottom left, bottom right.

    ``row`` int64 ``(B, Q, M, L, P, 4)`` is the pixel's row of :func:`table`, for pixels outside the level its last.
    ``weight``, ``d_x`` and ``d_y`` are the bilinear weight and its derivative by the point's place in pixels; all three
    are 0 for pixels outside the level, and for points a pixel or more outside it, at infinity, or NaN.
    """

    row: Tensor
    weight: Tensor
    d_x: Tensor
    d_y: Tensor


def corners(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor) -> Corners:
    """Where each point reads: ``pixel = location * size - 0.5``, as ``grid_sample`` with ``align_corners=False``.

    Levels are never synchronised to the host. A level that does not fit ``value``'s S pixels counts as outside.
    """
    batch, num_pixels, heads, _ = value.shape
    height, width, start = (n.view(-1, 1) for n in (*spatial_shapes.unbind(1), level_start_index))
    x = sampling_locations[..., 0] * width - 0.5
    y = sampling_locations[..., 1] * height - 0.5
    fits = (start >= 0) & (start + height * width <= num_pixels)
    inside = fits & (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    x, y = (v.masked_fill(~inside, 0) for v in (x, y))
    left, top = x.floor(), y.floor()

    corner = torch.arange(4, device=value.device)
    is_right, is_lower = corner % 2, corner // 2
    column, line = left.long().unsqueeze(-1) + is_right, top.long().unsqueeze(-1) + is_lower
    height, width, start = (n.unsqueeze(-1) for n in (height, width, start))
    valid = inside.unsqueeze(-1) & (column >= 0) & (column < width) & (line >= 0) & (line < height)
    batches = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1, 1) * num_pixels
    pixel = batches + start + line * width + column
    row = pixel * heads + torch.arange(heads, device=value.device).view(-1, 1, 1, 1)
    row = row.masked_fill(~valid, batch * num_pixels * heads)

    right_part, lower_part = (x - left).unsqueeze(-1), (y - top).unsqueeze(-1)
    along_x = torch.where(is_right == 1, right_part, 1 - right_part) * valid
    along_y = torch.where(is_lower == 1, lower_part, 1 - lower_part) * valid
    return Corners(row, along_x * along_y, along_y * (2 * is_right - 1), along_x * (2 * is_lower - 1))


def table(value: Tensor) -> Tensor:
    """``value`` as rows ``(B*S*M + 1, D)``, the last of them zeros: what lies outside, whatever the pixels hold."""
    return F.pad(value.reshape(-1, value.shape[-1]), (0, 0, 0, 1))


def forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """``(B, Q, M*D)``; half precision is summed in the precision of the locations."""
    at = corners(value, spatial_shapes, level_start_index, sampling_locations)
    share = at.weight * attention_weights.unsqueeze(-1)
    batch, queries, heads = share.shape[:3]
    rows, bags = table(value.to(share.dtype)), batch * queries * heads
    out = F.embedding_bag(at.row.view(bags, -1), rows, per_sample_weights=share.view(bags, -1), mode="sum")
    return out.view(batch, queries, -1).to(value.dtype)


def backward(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, in the locations' dtype; deterministic whatever is asked."""
    at = corners(value, spatial_shapes, level_start_index, sampling_locations)
    rows, grad_ND = table(value.to(at.weight.dtype)), grad.to(at.weight.dtype).view(-1, value.shape[-1])
    row = at.row.view(len(grad_ND), -1)
    bag = torch.arange(len(grad_ND), device=row.device)
    d_share = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_ND, rows, row.view(-1), bag * row.shape[1], bag.repeat_interleave(row.shape[1]), 0
    ).view(at.row.shape)
    d_pixel = torch.stack([(d_share * at.d_x).sum(-1), (d_share * at.d_y).sum(-1)], -1)
    d_locations = d_pixel * attention_weights.unsqueeze(-1) * spatial_shapes.flip(1).unsqueeze(1)
    return _value_gradient(grad_ND, at, attention_weights, value.shape), d_locations, (d_share * at.weight).sum(-1)


def value_gradient(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The first gradient of :func:`backward` alone, for kernels that cannot add it up in a fixed order."""
    at = corners(value, spatial_shapes, level_start_index, sampling_locations)
    return _value_gradient(grad.to(at.weight.dtype).view(-1, value.shape[-1]), at, attention_weights, value.shape)


def _value_gradient(grad_ND: Tensor, at: Corners, attention_weights: Tensor, shape: torch.Size) -> Tensor:
    share = (at.weight * attention_weights.unsqueeze(-1)).view(-1)
    row, order = at.row.view(-1).sort(stable=True)
    starts = torch.searchsorted(row, torch.arange(shape[:3].numel() + 1, device=row.device))
    outputs = order // (len(order) // len(grad_ND))
    d_table = F.embedding_bag(outputs, grad_ND, starts, per_sample_weights=share[order], mode="sum")
    return d_table[:-1].view(shape)
