"""The op written for a graph: what ONNX runtimes can run, or the node that TensorRT's own plugin serves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fiducial.ops import reference

Formulation = Literal["gather", "grid_sample", "plugin"]


def gather(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Four row gathers, one for each corner of a pixel: only operators that every runtime computes alike."""
    batch, queries, heads, levels, points = attention_weights.shape
    at = reference.corners(value, spatial_shapes, level_start_index, sampling_locations)
    share = (at.weight * attention_weights.unsqueeze(-1)).to(value.dtype)
    rows = reference.table(value)
    out = value.new_zeros(())
    for corner in range(4):
        samples = rows.index_select(0, at.row[..., corner].flatten()).view(-1, levels * points, value.shape[-1])
        out = out + share[..., corner].reshape(-1, 1, levels * points) @ samples
    return out.view(batch, queries, heads * value.shape[-1])


def grid_sample(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """One ``GridSample`` a level. The level sizes become constants of the graph; every level must have pixels."""
    batch, queries, heads, levels, points = attention_weights.shape
    channels = value.shape[-1]
    grids = 2 * sampling_locations - 1
    samples = []
    for level, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    ):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        image = image.to(grids.dtype)  # not the other way: half precision would move the points by whole pixels
        grid = grids[:, :, :, level].transpose(1, 2).reshape(-1, queries, points, 2)
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    share = attention_weights.transpose(1, 2).reshape(-1, 1, queries, levels * points)
    out = (torch.cat(samples, -1) * share).sum(-1).to(value.dtype)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


class _Plugin(torch.autograd.Function):
    """TensorRT's plugin as a node: computed by the op here, written as one node without attributes there."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        value = inputs[0]
        out: Tensor = torch.ops.fiducial.ms_deform_attn(*inputs)
        return out.view(*out.shape[:2], *value.shape[2:])

    @staticmethod
    def symbolic(g: Any, value: Any, *others: Any) -> Any:
        node = g.op("nvidia::MultiscaleDeformableAttnPlugin_TRT", value, *others)
        batch, _, heads, channels = value.type().varyingSizes()
        queries = others[2].type().varyingSizes()[1]
        return node.setType(value.type().with_sizes([batch, queries, heads, channels]))


def plugin(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The node ``nvidia::MultiscaleDeformableAttnPlugin_TRT``; its index inputs are int32, which the plugin wants."""
    node: Tensor = _Plugin.apply(
        value, spatial_shapes.int(), level_start_index.int(), sampling_locations, attention_weights
    )
    return node.flatten(2)


_FORMULATIONS: dict[Formulation, Callable[..., Tensor]] = {
    "gather": gather,
    "grid_sample": grid_sample,
    "plugin": plugin,
}
_active: Callable[..., Tensor] | None = None


def active() -> Callable[..., Tensor] | None:
    """What stands in for the op at present, if anything."""
    return _active


@contextlib.contextmanager
def export_as(formulation: Formulation) -> Iterator[None]:
    """Within the block, :func:`fiducial.ops.ms_deform_attn` writes this formulation into whatever graph is traced.

    ``gather`` and ``grid_sample`` run in onnxruntime and TensorRT, ``plugin`` only in TensorRT. The latter two need the
    TorchScript-based exporter (``torch.onnx.export(..., dynamo=False)``). ``gather`` is also the one that can be
    differentiated twice, forward, and within ``torch.func``.
    """
    global _active
    before, _active = _active, _FORMULATIONS[formulation]
    try:
        yield
    finally:
        _active = before
