"""A trained network as an ONNX file that is checked, and compared with torch, before it gets its name."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
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
from fiducial.deploy.opsets import LAST_SCRIPTED, check_opset
from fiducial.deploy.spelled_out import SpelledOut
from fiducial.errors import CheckpointError, SpecError
from fiducial.ops import Formulation, export_as
from fiducial.prediction import Graph, GraphInput

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

    ``card`` goes into the file, with the graph's inputs and outputs, the versions and the hash of the weights; nothing
    of the machine does. ``samples`` are batches of real inputs, by graph input name; random ones are always compared
    too. The file appears under its name only after the ONNX checker and onnxruntime agree with torch; weights that do
    not fit into one (2 GB is protobuf's limit) go into ``<path>.data`` beside it. A graph with TensorRT's plugin node
    runs in TensorRT alone: it is checked, but compared with nothing, and the result is NaN.

    Raises: SpecError for an operator set that the graph cannot be written in; CheckpointError when the network's
        outputs are no numbers, the graph is invalid, computes something else, or cannot be written.
    """
    problems = list(check_opset(settings.opset, settings.deformable_attention))
    if problems:
        raise SpecError.of(problems)
    network = network.eval().requires_grad_(False)
    uses_plugin = settings.deformable_attention == "plugin" and is_deformable(network)
    batches = [*_random_batches(graph, settings.batch_size), *_fitting(samples, settings.batch_size)]
    with _exact_floats(), torch.no_grad(), _beside(path) as written:
        expected = [_finite(network, graph, batch) for batch in batches]
        _write(network, written, graph, settings)
        inputs, outputs = _tensors(network, graph)
        said = replace(card.stamped(network.state_dict()), inputs=inputs, outputs=outputs)
        _finish(written, said, settings.opset, large=_is_large(network))
        worst = math.nan if uses_plugin else _compare(written, graph, batches, expected)
    return worst


def _is_large(network: nn.Module) -> bool:
    return bool(sum(tensor.nbytes for tensor in network.state_dict().values()) > MAX_BYTES)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own; whatever is in there at the end is moved beside ``path``.

    Raises: CheckpointError where the disk or its permissions end it; what stood at ``path`` is untouched then.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
        try:
            yield folder / path.name
            for file in sorted(
                folder.iterdir(), key=lambda file: file.name == path.name
            ):  # the graph after its weights
                os.replace(file, path.with_name(file.name))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20 if path.parent.is_dir() else 0
        found = f"cannot be written ({error.strerror or error})"
        raise CheckpointError(
            str(path), found, f"check the folder's permissions and space ({free:,} MiB free)"
        ) from error


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
        if settings.opset <= LAST_SCRIPTED:
            axes = {name: {0: graph.batch_axis} for name in (*graph.inputs, *graph.outputs)} if open_batch else None
            # the version of the plugin's node, as TAO writes it
            custom = {"nvidia": settings.opset} if settings.deformable_attention == "plugin" else None
            torch.onnx.export(
                network, inputs, str(path), dynamic_axes=axes, dynamo=False, custom_opsets=custom, **common
            )
            return
        batch = graph.batch_axis
        dynamic = tuple({0: batch} for _ in inputs) if open_batch else None
        program = torch.onnx.export(network, inputs, dynamic_shapes=dynamic, dynamo=True, **common)
    assert program is not None
    program.save(str(path), external_data=_is_large(network))


def _tensors(network: nn.Module, graph: Graph) -> tuple[dict[str, TensorCard], dict[str, TensorCard]]:
    """Shapes and types of the graph's inputs and outputs, one item each."""
    outputs = _run(network, graph, dict(zip(graph.inputs, _zeros(graph, 1), strict=True)))
    return (
        {name: TensorCard(item.shape, item.dtype) for name, item in graph.inputs.items()},
        {name: TensorCard(tuple(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for name, t in outputs.items()},
    )


def _zeros(graph: Graph, size: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(size, *item.shape, dtype=getattr(torch, item.dtype)) for item in graph.inputs.values())


def _finish(path: Path, card: ModelCard, opset: int, *, large: bool) -> None:
    """Add what the model says of itself, take out what exporters say of the machine, and check the file."""
    import onnx

    model = onnx.load(str(path))
    for file in path.parent.iterdir():  # the graph, and what an exporter put beside it
        file.unlink()
    got = next(entry.version for entry in model.opset_import if not entry.domain)
    if got != opset:  # the newer exporter keeps the graph as it is when it cannot convert it
        raise SpecError("export.opset_version", f"{opset}: torch's exporter wrote {got}", f"set {got}, or at most 20")
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


def forget_sources(message: Any) -> None:
    """Clear every comment of a protobuf message of ONNX: exporters note the source lines of every node, with paths."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                forget_sources(part)


def _compare(
    path: Path, graph: Graph, batches: Sequence[Mapping[str, Tensor]], expected: Sequence[Mapping[str, Tensor]]
) -> float:
    """The largest difference of onnxruntime from what torch gave. Raises: CheckpointError when it is too large."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, wanted in zip(batches, expected, strict=True):
        got = session.run(list(wanted), {name: batch[name].numpy() for name in graph.inputs})
        pairs = zip(wanted.items(), got, strict=True)
        worst = max(worst, *(difference(path, name, have, want.numpy()) for (name, want), have in pairs))
    return worst


def difference(path: Path, name: str, have: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """How far an output is from torch's. Raises: CheckpointError when it is too far, of another shape, or no number."""
    if have.shape != wanted.shape:
        raise CheckpointError(path.name, f"{name} is {have.shape} instead of {wanted.shape}", "report this as a bug")
    error = float(np.abs(have - wanted).max(initial=0.0))
    if not error <= ATOL + RTOL * float(np.abs(wanted).max(initial=0.0)):  # NaN is no agreement either
        found = f"{name} differs from torch by {error:.3g}"
        raise CheckpointError(path.name, found, "try another export.opset_version, and report this as a bug")
    return error


def _run(network: nn.Module, graph: Graph, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = network(*(batch[name] for name in graph.inputs))
    return dict(zip(graph.outputs, given if isinstance(given, (tuple, list)) else (given,), strict=True))


def _finite(network: nn.Module, graph: Graph, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What torch gives. Raises: CheckpointError unless it is numbers: nothing can be compared with NaN."""
    outputs = _run(network, graph, batch)
    for name, output in outputs.items():
        if not output.isfinite().all():
            found = f"the network gives NaN or infinite numbers ({name})"
            raise CheckpointError("export.checkpoint", found, "export a checkpoint from before the training diverged")
    return outputs


def _random_batches(graph: Graph, batch_size: int) -> Iterator[Mapping[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for size in [batch_size] if batch_size > 0 else [1, 3]:
        yield {name: _random(item, size, generator) for name, item in graph.inputs.items()}


def _fitting(samples: Sequence[Mapping[str, Tensor]], batch_size: int) -> Iterator[Mapping[str, Tensor]]:
    for sample in samples:
        if batch_size < 0 or len(next(iter(sample.values()))) == batch_size:
            yield sample


def _random(item: GraphInput, size: int, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, item.dtype)
    if dtype.is_floating_point:
        return torch.randn(size, *item.shape, generator=generator).to(dtype)
    return torch.randint(0, 2, (size, *item.shape), generator=generator).to(dtype)  # a mask, say


@contextlib.contextmanager
def _exact_floats() -> Iterator[None]:
    """TF32 off, so that a GPU traces and compares with full float32."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
