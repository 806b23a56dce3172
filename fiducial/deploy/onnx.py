"""A trained network as an ONNX file that is checked, and compared with torch, before it gets its name."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.backbones.deformable import is_deformable
from fiducial.deploy.card import ENTRY, ModelCard, TensorCard
from fiducial.deploy.opsets import LAST_SCRIPTED, check_opset
from fiducial.deploy.spelled_out import SpelledOut
from fiducial.deploy.verification import (
    QUANTIZED_RTOL,
    RTOL,
    Arrays,
    batches_for,
    compare,
    finite_outputs,
    outputs_of,
)
from fiducial.deploy.writing import beside
from fiducial.errors import CheckpointError, MissingDependencyError, SpecError, one_line, optional
from fiducial.ops import Formulation, export_as
from fiducial.prediction import Graph, GraphInput
from fiducial.run.console import LOGGER

__all__ = ["ExportSettings", "export_onnx", "forget_sources"]

MAX_BYTES = 1_800_000_000
"""Weights that one ONNX file holds; protobuf ends at 2 GB."""


@dataclass(frozen=True)
class ExportSettings:
    """How a graph is written."""

    opset: int
    batch_size: int
    """-1 leaves the batch axis open."""
    verbose: bool = False
    deformable_attention: Formulation = "gather"
    """How deformable attention is written, in a network that has any."""
    simplify: bool = False
    """Whether onnxslim takes nodes out that change nothing."""
    quantized: bool = False
    """Whether the network rounds to 8 bits: torch's older exporter writes Q/DQ nodes for that."""


def export_onnx(
    network: nn.Module,
    path: Path,
    graph: Graph,
    settings: ExportSettings,
    *,
    card: ModelCard,
    samples: Sequence[Mapping[str, Tensor]],
) -> float:
    """Write ``network`` (float32; it is frozen for good) to ``path``; returns how far outputs may be from torch's.

    ``card`` goes into the file, with the graph's inputs and outputs, the versions and, unless it has one, the hash of
    the weights; nothing of the machine does. ``samples`` are batches of real inputs, by graph input name; random ones
    are always compared too. The file appears under its name only after the ONNX checker and onnxruntime agree with
    torch; weights that do not fit into one (2 GB is protobuf's limit) go into ``<path>.data`` beside it. A graph with
    TensorRT's plugin node runs in TensorRT alone: it is checked, but compared with nothing, and the result is NaN.

    Raises: SpecError for an operator set that the graph cannot be written in; CheckpointError when the network's
        outputs are no numbers, the graph is invalid, computes something else, or cannot be written.
    """
    problems = list(check_opset(settings.opset, settings.deformable_attention, quantized=settings.quantized))
    if problems:
        raise SpecError.of(problems)
    network = network.eval().requires_grad_(False)
    uses_plugin = settings.deformable_attention == "plugin" and is_deformable(network)
    batches = batches_for(graph, settings.batch_size, samples)
    with _exact_floats(), torch.no_grad(), beside(path) as written:
        expected = [finite_outputs(network, graph, batch) for batch in batches]
        _write(network, written, graph, settings)
        inputs, outputs = _tensors(network, graph)
        stamped = card.stamped(None if card.weights else network.state_dict())
        _finish(written, replace(stamped, inputs=inputs, outputs=outputs), settings, large=_is_large(network))
        if uses_plugin:
            return math.nan
        run = _onnxruntime(written, graph, fused=not settings.quantized)
        return compare(written, run, batches, expected, rtol=QUANTIZED_RTOL if settings.quantized else RTOL)


def _is_large(network: nn.Module) -> bool:
    return bool(sum(tensor.nbytes for tensor in network.state_dict().values()) > MAX_BYTES)


def _write(network: nn.Module, path: Path, graph: Graph, settings: ExportSettings) -> None:
    # an open axis is traced with two items: one would let the tracer fold the batch away
    open_batch = settings.batch_size < 0
    inputs = _zeros(graph, 2 if open_batch else settings.batch_size)
    common: dict[str, Any] = {
        "input_names": list(graph.inputs),
        "output_names": list(graph.outputs),
        "opset_version": settings.opset,
        "verbose": settings.verbose,
    }
    network(*inputs)  # tables that depend on the size are made now, and become constants of the graph
    with warnings.catch_warnings(), export_as(settings.deformable_attention), SpelledOut():
        warnings.simplefilter("ignore")
        if settings.opset <= LAST_SCRIPTED or settings.quantized:
            axes = {name: {0: graph.batch_axis} for name in (*graph.inputs, *graph.outputs)} if open_batch else None
            # the version of the plugin's node, as TAO writes it
            custom = {"nvidia": settings.opset} if settings.deformable_attention == "plugin" else None
            torch.onnx.export(
                network, inputs, str(path), dynamic_axes=axes, dynamo=False, custom_opsets=custom, **common
            )
            return
        batch = graph.batch_axis
        dynamic: Any = tuple({0: batch} for _ in inputs) if open_batch else None
        kinds = {parameter.kind for parameter in inspect.signature(network.forward).parameters.values()}
        if open_batch and inspect.Parameter.VAR_POSITIONAL in kinds:  # ``*inputs`` counts as one
            dynamic = (dynamic,)
        program = torch.onnx.export(network, inputs, dynamic_shapes=dynamic, dynamo=True, **common)
    assert program is not None
    program.save(str(path), external_data=_is_large(network))


def _tensors(network: nn.Module, graph: Graph) -> tuple[dict[str, TensorCard], dict[str, TensorCard]]:
    """Shapes and types of the graph's inputs and outputs, one item each."""
    outputs = outputs_of(network, graph, dict(zip(graph.inputs, _zeros(graph, 1), strict=True)))
    return (
        {name: TensorCard(item.shape, item.dtype, _layout(item)) for name, item in graph.inputs.items()},
        {name: TensorCard(tuple(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for name, t in outputs.items()},
    )


def _layout(item: GraphInput) -> str:
    if not item.image:
        return ""
    return "NHWC" if item.dtype == "uint8" else "NCHW"


def _zeros(graph: Graph, size: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(size, *item.shape, dtype=getattr(torch, item.dtype)) for item in graph.inputs.values())


def _finish(path: Path, card: ModelCard, settings: ExportSettings, *, large: bool) -> None:
    """Add what the model says of itself, take out what exporters say of the machine, and check the file."""
    import onnx

    model = onnx.load(str(path))
    for file in path.parent.iterdir():  # the graph, and what an exporter put beside it
        file.unlink()
    got = next(entry.version for entry in model.opset_import if not entry.domain)
    if got != settings.opset:  # the newer exporter keeps the graph as it is when it cannot convert it
        raise SpecError(
            "export.opset_version", f"{settings.opset}: torch's exporter wrote {got}", f"set {got}, or at most 20"
        )
    if settings.simplify:
        model = _slimmed(model)
    forget_sources(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = ENTRY, json.dumps(card.plain())
    onnx.save(model, str(path), save_as_external_data=large, location=f"{path.name}.data")
    for file in path.parent.iterdir():  # onnx hides weights of their own from everybody else
        file.chmod(path.stat().st_mode)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker has no common class for what it finds
        raise CheckpointError(
            path.name, f"the ONNX checker refuses the graph: {error}", "report this as a bug"
        ) from error


def _slimmed(model: Any) -> Any:
    """Raises: MissingDependencyError; CheckpointError when onnxslim fails."""
    before = len(model.graph.node)
    try:
        model = optional("onnxslim", extra="slim").slim(model)
    except MissingDependencyError:
        raise
    except Exception as error:  # whatever is thrown at a graph that it does not know
        raise CheckpointError("export.simplify", f"onnxslim fails: {one_line(error)}", "set it to false") from error
    LOGGER.info("onnxslim left %d of %d nodes", len(model.graph.node), before)
    return model


def forget_sources(message: Any) -> None:
    """Clear every comment of a protobuf message of ONNX: exporters note the source lines of every node, with paths."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                forget_sources(part)


def _onnxruntime(path: Path, graph: Graph, *, fused: bool = True) -> Callable[[Arrays], Arrays]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not fused:  # as the graph says it; fused, sums of int8 may overflow on processors without VNNI
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: dict(zip(graph.outputs, session.run(list(graph.outputs), dict(feeds)), strict=True))


@contextlib.contextmanager
def _exact_floats() -> Iterator[None]:
    """TF32 off, so that a GPU traces and compares with full float32."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
