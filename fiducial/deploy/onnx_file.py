"""An ONNX file, which may come from anywhere: what is in it, without running it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fiducial.errors import CheckpointError, Problem

__all__ = ["AGAIN", "RANDOM", "OnnxFile", "one_line", "read_onnx"]

AGAIN = "export the model again"
MAX_BYTES = 2**31
"""Where protobuf ends; larger weights stand beside the file."""
_TENSORRT = ("nvidia", "trt", "trt.plugins")
_ENDLESS = ("Loop", "Scan")
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says."""

    path: Path
    digest: str
    """SHA-256 of the file, without weights that stand beside it."""
    metadata: dict[str, str]
    has_loops: bool
    """Whether its graph can go on without end."""
    symmetric_int8: bool = False
    """Whether it is quantized to int8 alone, as ModelOpt does: neither bytes from 0 to 255, nor biases of int32."""


def read_onnx(path: Path, *, for_tensorrt: bool = False) -> OnnxFile:
    """Read a file; nothing of it is run, and no file that it names is opened.

    Raises: CheckpointError for what is no ONNX, needs TensorRT and is not ``for_tensorrt``, or names weights
        outside of its folder.
    """
    from onnx import ModelProto

    content, model = _content(path), ModelProto()
    try:
        model.ParseFromString(content)
        parts = list(_inside(model))
        nodes = [part for part in parts if part.DESCRIPTOR.name == "NodeProto"]
        tensors = [part for part in parts if part.DESCRIPTOR.name == "TensorProto"]
        problems = [*_unfit(path, nodes, for_tensorrt), *_outside(path, tensors)]
    except Exception as error:  # protobuf's own exceptions
        raise CheckpointError(str(path), f"not an ONNX file: {one_line(error)}", AGAIN) from None
    if not model.graph.output:
        raise CheckpointError(str(path), "not an ONNX file: no graph with an output in it", AGAIN)
    if problems:
        raise CheckpointError.of(problems)
    metadata = {item.key: item.value for item in model.metadata_props}
    has_loops = any(node.op_type in _ENDLESS for node in nodes)
    digest = hashlib.sha256(content).hexdigest()
    return OnnxFile(path, digest, metadata, has_loops, _is_symmetric_int8(nodes, model.graph.initializer))


def one_line(error: object) -> str:
    """The beginning of another library's message, without its line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise CheckpointError(str(path), "no such file", "name a model file that is there")
        size = path.stat().st_size
        if size >= MAX_BYTES:
            found = f"{size / 2**30:.1f} GB: an ONNX file ends at 2 GB"
            raise CheckpointError(str(path), found, f"{AGAIN}: large weights go beside it")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), f"cannot be read ({one_line(error)})", "check the file") from None


def _inside(message: Any) -> Iterator[Any]:
    """A message and every other in it, at any depth: graphs have nodes, whose attributes have graphs.

    Raises: ValueError for a name that is no text.
    """
    yield message
    for descriptor, value in message.ListFields():
        parts = [value] if hasattr(value, "DESCRIPTOR") or isinstance(value, (str, bytes)) else value
        if descriptor.message_type is not None:
            for part in parts:
                yield from _inside(part)
        elif descriptor.type == descriptor.TYPE_STRING and any(isinstance(part, bytes) for part in parts):
            raise ValueError(f"{descriptor.name} is not UTF-8")


def _is_symmetric_int8(nodes: list[Any], constants: Any) -> bool:
    from onnx import TensorProto

    kinds = {tensor.name: tensor.data_type for tensor in constants}
    for node in nodes:
        if node.op_type == "Constant":
            kinds.update((node.output[0], entry.t.data_type) for entry in node.attribute if entry.name == "value")
    quantizing = [node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    used = {kinds[name] for node in quantizing for name in (*node.input[:1], *node.input[2:]) if name in kinds}
    return used - {TensorProto.FLOAT, TensorProto.FLOAT16} == {TensorProto.INT8}


def _unfit(path: Path, nodes: list[Any], for_tensorrt: bool) -> Iterator[Problem]:
    """Nodes that onnxruntime cannot run, or that no measurement can be made of; some of these end the process."""
    drawn = sorted({node.op_type for node in nodes if node.op_type in RANDOM})
    if drawn:
        yield Problem(str(path), f"draws random numbers ({', '.join(drawn)}): it has no one result", AGAIN)
    needed = sorted({node.op_type for node in nodes if node.domain in _TENSORRT})
    if needed and not for_tensorrt:
        found = f"has nodes of TensorRT's plugins ({', '.join(needed)}), which onnxruntime does not run"
        yield Problem(str(path), found, "export it with export.deformable_attention=gather")


def _outside(path: Path, tensors: list[Any]) -> Iterator[Problem]:
    """Weights in files that do not stand beside the graph, or are not there."""
    places = {
        e.value for t in tensors for e in t.external_data if t.data_location == t.EXTERNAL and e.key == "location"
    }
    folder = path.parent.resolve()
    for place in sorted(places):
        is_below = not PurePath(place).is_absolute() and (folder / place).resolve().is_relative_to(folder)
        if not is_below:
            yield Problem(str(path), f"its weights are said to be in {place!r}, outside of its folder", AGAIN)
        elif not (folder / place).is_file():
            yield Problem(str(path), f"its weights are said to be in {place!r}, which is not there", "copy both files")
