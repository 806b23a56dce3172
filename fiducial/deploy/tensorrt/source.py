"""The ONNX file that an engine is built from: read, and found to be of the task, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiducial.deploy.card import ModelCard
from fiducial.deploy.graph_predictor import Port, check_interface
from fiducial.deploy.onnx_file import AGAIN, read_onnx
from fiducial.errors import CheckpointError, Problem
from fiducial.prediction import Graph

__all__ = ["QUANTIZERS", "Source"]

QUANTIZERS = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "TRT_FP8QuantizeLinear")
"""Nodes of a graph that is quantized already; TAO's own list, and ModelOpt's node for fp8."""
_TYPES = {
    **{"FLOAT": "float32", "FLOAT16": "float16", "DOUBLE": "float64", "BFLOAT16": "bfloat16"},
    **{"BOOL": "bool", "UINT8": "uint8", "INT32": "int32", "INT64": "int64"},
}
"""ONNX's names of types, where torch has others."""


@dataclass(frozen=True)
class Source:
    """What an ONNX file says, without its weights."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    card: ModelCard
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    nodes: Sequence[str]
    """Their names."""
    is_quantized: bool
    has_plugins: bool
    """Whether only TensorRT can run it."""

    @classmethod
    def read(cls, path: Path, *, plugins: bool) -> Source:
        """Read a file. ``plugins``: whether nodes of TensorRT's plugins will do.

        Raises: CheckpointError for what is no ONNX, or cannot be built from.
        """
        import onnx

        if path.suffix.lower() != ".onnx":
            raise CheckpointError(str(path), "an engine is built from an .onnx file", "export the checkpoint first")
        file = read_onnx(path, for_tensorrt=plugins)
        graph = onnx.load(str(path), load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        kinds = {node.op_type for node in graph.node}
        return cls(
            path=path,
            digest=file.digest,
            card=ModelCard.of_onnx(file),
            inputs=[_port(entry) for entry in graph.input if entry.name not in constants],
            outputs=[_port(entry) for entry in graph.output],
            nodes=[node.name for node in graph.node],
            is_quantized=not kinds.isdisjoint(QUANTIZERS),
            has_plugins=any(node.domain in ("nvidia", "trt", "trt.plugins") for node in graph.node),
        )

    def check(self, graph: Graph) -> None:
        """See that it takes and gives what a graph does. Raises: CheckpointError naming all that is not so."""
        problems = [Problem(str(self.path), *said) for said in check_interface(graph, self.inputs, self.outputs)]
        problems += [
            Problem(
                str(self.path), f"input {port.name} has open sides {list(port.shape)}", f"{AGAIN}: only batches vary"
            )
            for port in self.inputs
            if any(not isinstance(side, int) for side in port.shape[1:])
        ]
        if problems:
            raise CheckpointError.of(problems)

    @property
    def batch_size(self) -> int | None:
        """The batch size that it is fixed to; None where it is open."""
        return next((port.shape[0] for port in self.inputs if isinstance(port.shape[0], int)), None)


def _port(entry: Any) -> Port:
    from onnx import TensorProto

    kind = TensorProto.DataType.Name(entry.type.tensor_type.elem_type)
    sides = entry.type.tensor_type.shape.dim
    shape = [side.dim_value if side.HasField("dim_value") else (side.dim_param or None) for side in sides]
    return Port(entry.name, shape, _TYPES.get(kind, kind.lower()))
