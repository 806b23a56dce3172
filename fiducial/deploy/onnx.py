"""A trained network as an ONNX file that is checked, and compared with torch, before it gets its name."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiducial.backbones.deformable import is_deformable
from fiducial.deploy.card import ENTRY, ModelCard, TensorCard
from fiducial.errors import CheckpointError
from fiducial.ops import Formulation, export_as, opset_for
from fiducial.prediction import Graph, GraphInput
from fiducial.run.console import LOGGER

MIN_OPSET = 18
"""The exporter writes this operator set or a newer one."""
MAX_BYTES = 1_800_000_000
"""Weights that one ONNX file holds; protobuf ends at 2 GB."""
RTOL, ATOL = 1e-3, 1e-4
"""How far onnxruntime may be from torch: relative to the largest output of the batch, and absolute."""


@dataclass(frozen=True)
class ExportSettings:
    """How a graph is written."""

    opset: int
    batch_size: int
    """-1 leaves the batch axis open."""
    verbose: bool = False
    deformable_attention: Formulation = "gather"
    """How deformable attention is written, in a network that has any."""

    @property
    def scripted(self) -> bool:
        """Whether torch's older exporter is needed: the newer one knows neither formulation."""
        return self.deformable_attention != "gather"

    @property
    def effective_opset(self) -> int:
        """The requested operator set, or the oldest that can hold the graph, with a notice."""
        if self.scripted:
            return opset_for(self.deformable_attention, self.opset)
        if self.opset < MIN_OPSET:
            LOGGER.warning("export.opset_version: %d is too old for this graph: writing %d", self.opset, MIN_OPSET)
        return max(self.opset, MIN_OPSET)


def export_onnx(
    network: nn.Module,
    path: Path,
    graph: Graph,
    settings: ExportSettings,
    *,
    card: ModelCard,
    samples: Sequence[Mapping[str, Tensor]],
) -> float:
    """Write ``network`` (float32; it is frozen for good) to ``path``; returns the largest difference from torch.

    ``card`` goes into the file, with the graph's inputs and outputs, the versions and the hash of the weights.
    ``samples`` are batches of real inputs, by graph input name; random ones are always compared too. The file appears
    under its name only after the ONNX checker and onnxruntime agree with torch; weights that do not fit into one
    (2 GB is protobuf's limit) go into ``<path>.data`` beside it. A graph with TensorRT's plugin node runs in TensorRT
    alone: it is checked, but compared with nothing, and the result is NaN.

    Raises: CheckpointError when the graph is invalid or computes something else.
    """
    network = network.eval().requires_grad_(False)
    partial = path.with_name(f".{path.name}.partial")
    uses_plugin = settings.deformable_attention == "plugin" and is_deformable(network)
    try:
        with _exact_floats(), torch.no_grad():
            _write(network, partial, graph, settings)
            inputs, outputs = _tensors(network, graph)
            said = replace(card.stamped(network.state_dict()), inputs=inputs, outputs=outputs)
            _annotate(partial, said, weights=f"{path.name}.data" if _is_large(network) else None)
            worst = math.nan
            if not uses_plugin:
                worst = _compare(network, partial, graph, settings.batch_size, samples)
        os.replace(partial, path)
    finally:
        for leftover in (partial, partial.with_name(partial.name + ".data")):
            leftover.unlink(missing_ok=True)
    return worst


def _is_large(network: nn.Module) -> bool:
    return bool(sum(tensor.nbytes for tensor in network.state_dict().values()) > MAX_BYTES)


def _write(network: nn.Module, path: Path, graph: Graph, settings: ExportSettings) -> None:
    # an open axis is traced with two items: one would let the tracer fold the batch away
    size = settings.batch_size if settings.batch_size > 0 else 2
    inputs = _zeros(graph, size)
    names: dict[str, Any] = {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
    common: dict[str, Any] = {**names, "opset_version": settings.effective_opset, "verbose": settings.verbose}
    open_batch = settings.batch_size < 0
    network(*inputs)  # tables that depend on the size are made now, and become constants of the graph
    with warnings.catch_warnings(), export_as(settings.deformable_attention):
        warnings.simplefilter("ignore")
        if settings.scripted:
            axes = {name: {0: graph.batch_axis} for name in (*graph.inputs, *graph.outputs)} if open_batch else None
            versions = {"nvidia": settings.effective_opset}  # of the plugin's node, as TAO writes it
            torch.onnx.export(
                network, inputs, str(path), dynamic_axes=axes, dynamo=False, custom_opsets=versions, **common
            )
            return
        batch = graph.batch_axis
        dynamic = tuple({0: batch} for _ in inputs) if open_batch else None
        program = torch.onnx.export(network, inputs, dynamic_shapes=dynamic, dynamo=True, **common)
    assert program is not None
    program.save(str(path), external_data=_is_large(network))


def _tensors(network: nn.Module, graph: Graph) -> tuple[dict[str, TensorCard], dict[str, TensorCard]]:
    """Shapes and types of the graph's inputs and outputs, one item each."""
    given = network(*_zeros(graph, 1))
    outputs = given if isinstance(given, (tuple, list)) else (given,)
    named = zip(graph.outputs, outputs, strict=True)
    return (
        {name: TensorCard(item.shape, item.dtype) for name, item in graph.inputs.items()},
        {name: TensorCard(tuple(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for name, t in named},
    )


def _zeros(graph: Graph, size: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(size, *item.shape, dtype=getattr(torch, item.dtype)) for item in graph.inputs.values())


def _annotate(path: Path, card: ModelCard, *, weights: str | None) -> None:
    """Add what the model says of itself, and run the ONNX checker. ``weights`` names a file of their own."""
    import onnx

    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = ENTRY, json.dumps(card.plain())
    if weights:
        (path.parent / weights).unlink(missing_ok=True)  # onnx would append
        onnx.save(model, str(path), save_as_external_data=True, location=weights)
    else:
        onnx.save(model, str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker has no common class for what it finds
        raise CheckpointError(
            str(path), f"the ONNX checker refuses the graph: {error}", "report this as a bug"
        ) from error


def _compare(
    network: nn.Module, path: Path, graph: Graph, batch_size: int, samples: Sequence[Mapping[str, Tensor]]
) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in [batch_size] if batch_size > 0 else [1, 3]:
        random = {name: _random(item, size, generator) for name, item in graph.inputs.items()}
        worst = max(worst, _difference(network, session, path, graph, random, "random inputs"))
    for number, sample in enumerate(samples):
        if batch_size > 0 and len(next(iter(sample.values()))) != batch_size:
            continue
        worst = max(worst, _difference(network, session, path, graph, sample, f"real inputs {number}"))
    return worst


def _random(item: GraphInput, size: int, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, item.dtype)
    if dtype.is_floating_point:
        return torch.randn(size, *item.shape, generator=generator).to(dtype)
    return torch.randint(0, 2, (size, *item.shape), generator=generator).to(dtype)  # a mask, say


def _difference(
    network: nn.Module, session: Any, path: Path, graph: Graph, inputs: Mapping[str, Tensor], what: str
) -> float:
    expected = network(*(inputs[name] for name in graph.inputs))
    outputs = expected if isinstance(expected, (tuple, list)) else (expected,)
    got = session.run(list(graph.outputs), {name: inputs[name].numpy() for name in graph.inputs})
    worst = 0.0
    for name, want, have in zip(graph.outputs, outputs, got, strict=True):
        wanted = want.numpy()
        if have.shape != wanted.shape:
            raise CheckpointError(
                str(path), f"{name} is {have.shape} instead of {wanted.shape}", "report this as a bug"
            )
        error = float(np.abs(have - wanted).max()) if wanted.size else 0.0
        if not error <= ATOL + RTOL * float(np.abs(wanted).max(initial=0.0)):
            found = f"{name} differs from torch by {error:.3g} on {what}"
            raise CheckpointError(str(path), found, "try another export.opset_version, and report this as a bug")
        worst = max(worst, error)
    return worst


@contextlib.contextmanager
def _exact_floats() -> Iterator[None]:
    """TF32 off, so that a GPU traces and compares with full float32."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
