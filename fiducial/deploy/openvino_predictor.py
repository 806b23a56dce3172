"""Running an exported model with OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fiducial.deploy.card import ModelCard
from fiducial.deploy.digest import file_digest
from fiducial.deploy.graph_predictor import GraphPredictor, Port
from fiducial.deploy.ir_file import check_ir
from fiducial.deploy.onnx_file import AGAIN, one_line
from fiducial.deploy.openvino_package import openvino, own_signal_stack
from fiducial.errors import CheckpointError
from fiducial.run.console import LOGGER

__all__ = ["OpenVinoPredictor", "settings"]

_TYPES = {
    **{"f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool"},
    **{"u8": "uint8", "i32": "int32", "i64": "int64"},
}
"""OpenVINO's names of types, where NumPy has arrays of them."""


def settings() -> dict[str, Any]:
    """How a graph is compiled: one batch at a time, on as many threads as torch uses, and in the numbers of the file.

    OpenVINO would choose bfloat16 by itself where a processor is fast at it. Its snippets, kernels made for the graph
    at hand, end the process for some graphs of a fixed batch size (FAN with pictures of 32 pixels; seen in 2026.4.1),
    and make no difference where the batch is open.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "SNIPPETS_MODE": "DISABLE",
    }


class OpenVinoPredictor(GraphPredictor):
    """Runs OpenVINO's own format, a graph in ``.xml`` and its weights in ``.bin``; see :class:`GraphPredictor`."""

    runtime = "openvino"

    def read(self) -> tuple[ModelCard, str]:
        """The card beside the file, and the digest of both files."""
        digest = file_digest(self.path)
        return ModelCard.read(self.path), digest

    def open(self) -> tuple[Sequence[Port], Sequence[Port]]:
        """Compile the graph for this processor."""
        self.package = openvino()
        check_ir(self.path)
        core = self.package.Core()
        try:
            model = core.read_model(self.path)
            inputs = [_port(port, self.graph.inputs) for port in model.inputs]
            outputs = [_port(port, self.graph.results) for port in model.outputs]
            self._bound(model)
            with own_signal_stack():
                self._request = core.compile_model(model, "CPU", settings()).create_infer_request()
        except (RuntimeError, ValueError) as error:  # what OpenVINO raises, and its messages that are no text
            raise CheckpointError(str(self.path), f"OpenVINO cannot load it: {one_line(error)}", AGAIN) from None
        self._places = {name: place for place, name in enumerate(port.name for port in outputs)}
        self._turn = threading.Lock()
        LOGGER.info("OpenVINO %s on %s threads", self.package.__version__, settings()["INFERENCE_NUM_THREADS"])
        return inputs, outputs

    def _bound(self, model: Any) -> None:
        """Take over the bounds of an open batch axis."""
        axes = [port.get_partial_shape()[0] for port in model.inputs if port.get_partial_shape().rank.get_length()]
        for axis in axes:
            if axis.is_dynamic:
                low, high = axis.get_min_length(), axis.get_max_length()
                self.padded_to = max(self.padded_to or 0, low) or None
                self.most = min(self.most or high, high) if high > 0 else self.most

    def run(self, feeds: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """One batch."""
        arrays = {name: value.contiguous().numpy() for name, value in feeds.items()}
        with self._turn:  # a request holds the values of one batch
            try:
                self._request.infer(arrays, share_inputs=True)
                places = [self._places[name] for name in self.graph.results]
                return [torch.from_numpy(self._request.get_output_tensor(place).data.copy()) for place in places]
            except RuntimeError as error:
                fix = "set a smaller batch_size" if "llocate" in str(error) else AGAIN
                raise CheckpointError(str(self.path), f"OpenVINO stopped: {one_line(error)}", fix) from None

    def facts(self) -> Mapping[str, str]:
        """What a report says about how it ran."""
        return {"openvino": self.package.__version__, "threads": str(settings()["INFERENCE_NUM_THREADS"])}


def _port(port: Any, wanted: Any) -> Port:
    """One with several names goes by the one that the task has for it."""
    names = sorted(port.get_names()) or [port.get_node().get_friendly_name()]
    name = next((name for name in names if name in wanted), names[0])
    shape = port.get_partial_shape()
    sides = [side.get_length() if side.is_static else None for side in shape] if shape.rank.is_static else []
    kind = port.get_element_type().get_type_name()
    return Port(name, sides, _TYPES.get(kind, kind))
