"""What runs a model file: the file's kind chooses the runtime, the rest of the project does not notice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError, Problem
from fiducial.run.console import LOGGER
from fiducial.task import Graph, Predictor, TaskRuntime

METADATA = "fiducial"
"""The entry of an ONNX file's metadata that holds what the model says of its inputs, as JSON."""


def open_predictor(path: Path, runtime: TaskRuntime, *, encryption_key: str | None = None) -> Predictor:
    """A predictor for a checkpoint (torch) or an ``.onnx`` file (onnxruntime).

    Raises: CheckpointError when the file does not fit the spec, or is of a kind that nothing here runs.
    """
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxPredictor(path, runtime)
    if suffix in (".engine", ".trt", ".plan"):
        raise CheckpointError(
            str(path), "a TensorRT engine", "evaluate the checkpoint or the .onnx file it was built from"
        )
    return runtime.torch_predictor(read(path, key=encryption_key))


class OnnxPredictor:
    """Runs an exported model with onnxruntime. A fixed batch size is served by padding the last batch.

    Raises: CheckpointError when the file cannot be loaded, or its inputs differ from what the spec composes.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, runtime: TaskRuntime) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        available = ort.get_available_providers()
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            raise CheckpointError(str(path), f"onnxruntime cannot load it: {error}", "export the model again") from None
        meta = self.session.get_modelmeta().custom_metadata_map
        said: dict[str, Any] = json.loads(meta[METADATA]) if METADATA in meta else {}
        self.graph = runtime.graph()
        _check_inputs(path, self.graph, {i.name: i.shape for i in self.session.get_inputs()}, said, runtime.metadata())
        runtime.use_normalization_of({"fiducial": said})
        first = self.session.get_inputs()[0].shape[0]
        self.batch_size: int | None = first if isinstance(first, int) else None
        LOGGER.info("onnxruntime %s with %s", ort.__version__, ", ".join(self.session.get_providers()))

    def predict(self, batch: Mapping[str, Any]) -> Tensor:
        """The last output of the graph for a batch of the task's loader."""
        feeds = {name: batch[item.batch_key].cpu().numpy() for name, item in self.graph.inputs.items()}
        size = len(next(iter(feeds.values())))
        step = self.batch_size or size
        parts = [self._part({k: v[start : start + step] for k, v in feeds.items()}) for start in range(0, size, step)]
        return torch.from_numpy(np.concatenate(parts))

    def _part(self, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        size = len(next(iter(feeds.values())))
        if self.batch_size and size < self.batch_size:
            lacking = self.batch_size - size
            feeds = {k: np.concatenate([v, np.repeat(v[-1:], lacking, axis=0)]) for k, v in feeds.items()}
        output: np.ndarray[Any, Any] = self.session.run([self.graph.outputs[-1]], feeds)[0]
        return output[:size]


def _check_inputs(
    path: Path, graph: Graph, found: dict[str, list[Any]], said: dict[str, Any], wanted: dict[str, Any]
) -> None:
    problems = []
    for name, item in graph.inputs.items():
        shape = found.get(name)
        if shape is None:
            problems.append(
                Problem(str(path), f"no input {name!r} (it has {', '.join(found)})", "export it with this tool")
            )
        elif tuple(shape[1:]) != item.shape:
            fix = "use the keys of the export that say how images are composed: their size first"
            problems.append(
                Problem(str(path), f"input {name} is {shape[1:]}, the spec composes {list(item.shape)}", fix)
            )
    for key in ("input_map", "concat_type", "difference_module", "num_golden"):
        # as text: two maps of the same lights in another order are another image
        if key in said and json.dumps(said[key]) != json.dumps(wanted.get(key)):
            found_text = f"{wanted.get(key)!r} in the spec, {said[key]!r} in the file"
            problems.append(Problem(key, found_text, f"set {key} to the value the model was exported with"))
    if problems:
        raise CheckpointError.of(problems)
