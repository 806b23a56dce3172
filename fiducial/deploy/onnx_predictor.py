"""Running an exported model with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiducial.deploy.card import ModelCard
from fiducial.errors import CheckpointError, Problem
from fiducial.prediction import Batch, Graph, Outputs, Predictor
from fiducial.run.console import LOGGER
from fiducial.task import TaskRuntime

__all__ = ["OnnxPredictor"]

Arrays = dict[str, "np.ndarray[Any, Any]"]


class OnnxPredictor(Predictor):
    """Runs an exported model with onnxruntime. A fixed batch size is served by padding the last batch.

    The task's runtime adopts the file's card first, so that inputs are prepared as the model was trained.

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
        self.graph = runtime.graph()
        _check_inputs(path, self.graph, {i.name: i.shape for i in self.session.get_inputs()})
        runtime.adopt(ModelCard.read(path))
        first = self.session.get_inputs()[0].shape[0]
        self.batch_size: int | None = first if isinstance(first, int) else None
        LOGGER.info("onnxruntime %s with %s", ort.__version__, ", ".join(self.session.get_providers()))

    def predict(self, batch: Batch) -> Outputs:
        """The graph's results for a batch of the task's loaders."""
        feeds: Arrays = {
            name: batch[item.batch_key].cpu().numpy().astype(item.dtype, copy=False)
            for name, item in self.graph.inputs.items()
        }
        size = len(next(iter(feeds.values())))
        step = self.batch_size or size
        parts = [self._part({k: v[start : start + step] for k, v in feeds.items()}) for start in range(0, size, step)]
        joined = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
        return {name: _tensor(output) for name, output in zip(self.graph.results, joined, strict=True)}

    def _part(self, feeds: Arrays) -> list[np.ndarray[Any, Any]]:
        size = len(next(iter(feeds.values())))
        if self.batch_size and size < self.batch_size:
            lacking = self.batch_size - size
            feeds = {k: np.concatenate([v, np.repeat(v[-1:], lacking, axis=0)]) for k, v in feeds.items()}
        outputs: list[np.ndarray[Any, Any]] = self.session.run(list(self.graph.results), feeds)
        return [output[:size] for output in outputs]


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array)


def _check_inputs(path: Path, graph: Graph, found: dict[str, list[Any]]) -> None:
    problems = []
    for name, item in graph.inputs.items():
        shape = found.get(name)
        if shape is None:
            fix = "export it with this program"
            problems.append(Problem(str(path), f"no input {name!r} (it has {', '.join(found)})", fix))
        elif tuple(shape[1:]) != item.shape:
            fix = "use the keys of the export that say how inputs are prepared: their size first"
            said = f"input {name} is {shape[1:]}, the spec composes {list(item.shape)}"
            problems.append(Problem(str(path), said, fix))
    if problems:
        raise CheckpointError.of(problems)
