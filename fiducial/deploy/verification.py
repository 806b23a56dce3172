"""Whether an exported graph computes what the network does: both run on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiducial.errors import CheckpointError
from fiducial.prediction import Graph, GraphInput

__all__ = [
    "ATOL",
    "QUANTIZED_RTOL",
    "RTOL",
    "Arrays",
    "batches_for",
    "compare",
    "difference",
    "finite_outputs",
    "outputs_of",
]

RTOL, ATOL = 1e-3, 1e-4
"""How far a runtime may be from torch: relative to the largest output of the batch, and absolute."""
QUANTIZED_RTOL = 0.1
"""The first of them where numbers are rounded to 8 bits: what lies in the middle of two becomes either, and all that
follows from it moves by as much as rounding itself moves it."""

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def batches_for(graph: Graph, batch_size: int, samples: Sequence[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """Random batches that the graph takes, and those of ``samples`` that it does; -1 leaves its batch axis open."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        {name: _random(item, size, generator) for name, item in graph.inputs.items()}
        for size in ([batch_size] if batch_size > 0 else [1, 3])
    ]
    return [*drawn, *(s for s in samples if batch_size < 0 or len(next(iter(s.values()))) == batch_size)]


def _random(item: GraphInput, size: int, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, item.dtype)
    if dtype.is_floating_point:
        return torch.randn(size, *item.shape, generator=generator).to(dtype)
    end = 256 if dtype == torch.uint8 else 2  # pixels, else a mask, say
    return torch.randint(0, end, (size, *item.shape), generator=generator).to(dtype)


def outputs_of(network: nn.Module, graph: Graph, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What torch gives, by output."""
    given = network(*(batch[name] for name in graph.inputs))
    return dict(zip(graph.outputs, given if isinstance(given, (tuple, list)) else (given,), strict=True))


def finite_outputs(network: nn.Module, graph: Graph, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What torch gives. Raises: CheckpointError unless it is numbers: nothing can be compared with NaN."""
    outputs = outputs_of(network, graph, batch)
    for name, output in outputs.items():
        if not output.isfinite().all():
            found = f"the network gives NaN or infinite numbers ({name})"
            raise CheckpointError("export.checkpoint", found, "export a checkpoint from before the training diverged")
    return outputs


def compare(
    path: Path,
    run: Callable[[Arrays], Arrays],
    batches: Sequence[Mapping[str, Tensor]],
    expected: Sequence[Mapping[str, Tensor]],
    *,
    rtol: float = RTOL,
) -> float:
    """The largest :func:`difference` of a runtime's outputs. Raises: CheckpointError when it is too large."""
    worst = 0.0
    for batch, wanted in zip(batches, expected, strict=True):
        got = run({name: value.numpy() for name, value in batch.items()})
        worst = max(worst, *(difference(path, name, got[name], want.numpy(), rtol) for name, want in wanted.items()))
    return worst


def difference(
    path: Path, name: str, have: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], rtol: float = RTOL
) -> float:
    """How far an output is from torch's, in shares of the largest of a batch.

    Raises: CheckpointError when it is too far, of another shape, or no number.
    """
    if have.shape != wanted.shape:
        raise CheckpointError(path.name, f"{name} is {have.shape} instead of {wanted.shape}", "report this as a bug")
    error, largest = (float(np.abs(values).max(initial=0.0)) for values in (have - wanted, wanted))
    if not error <= ATOL + rtol * largest:  # NaN is no agreement either
        found = f"{name} differs from torch by {error:.3g}"
        raise CheckpointError(path.name, found, "try another export.opset_version, and report this as a bug")
    return error / largest if largest else error
