"""Running an exported model with onnxruntime."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx_file import AGAIN, OnnxFile, one_line, read_onnx
from fiducial.errors import CheckpointError, Problem
from fiducial.prediction import Batch, Graph, GraphInput, Outputs, Predictor
from fiducial.run.console import LOGGER
from fiducial.task import TaskRuntime

__all__ = ["OnnxPredictor"]

Arrays = dict[str, "np.ndarray[Any, Any]"]

LOOP_SECONDS = 60.0
"""How long a batch may take in a graph with loops, which no exported network has and which may never end."""
_FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_INTEGERS = {f"tensor({name})": name for name in ("bool", "uint8", "int32", "int64")}


class OnnxPredictor(Predictor):
    """Runs an exported model with onnxruntime. A fixed batch size is served by padding the last batch.

    The task's runtime adopts the file's card first, so that inputs are prepared as the model was trained. A pickled one
    names its file, and opens it again, if it is still the same.

    Raises: CheckpointError when the file cannot be loaded, or its inputs or outputs are not those of the spec.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, runtime: TaskRuntime) -> None:
        self.file, self.graph = read_onnx(Path(path).absolute()), runtime.graph()
        card, task = ModelCard.of_onnx(self.file), runtime.card().task
        if card.task not in ("", task):
            raise CheckpointError(str(path), f"a model of task {card.task}", f"give a model of task {task}")
        runtime.adopt(card)  # first: what the two contradict each other in is said by the spec's keys
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "graph": self.graph}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if read_onnx(self.file.path).digest != self.file.digest:
            found = "has changed since the model that is unpickled here was loaded from it"
            raise CheckpointError(str(self.file.path), found, "load and pickle the model again")
        self._open()

    def _open(self) -> None:
        import onnxruntime as ort

        self.session = _session(self.file)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        problems = list(_check_interface(self.graph, inputs, outputs))
        if problems:
            raise CheckpointError.of(Problem(str(self.file.path), *problem) for problem in problems)
        self.dtypes = {entry.name: {**_FLOATS, **_INTEGERS}[entry.type] for entry in inputs}
        self.batch_size: int | None = next((i.shape[0] for i in inputs if isinstance(i.shape[0], int)), None)
        LOGGER.info("onnxruntime %s with %s", ort.__version__, ", ".join(self.session.get_providers()))

    def predict(self, batch: Batch) -> Outputs:
        """The graph's results, float32, for a batch of the task's loaders.

        Raises: CheckpointError when onnxruntime stops, or gives something else than the task's outputs.
        """
        feeds: Arrays = {
            name: batch[item.batch_key].cpu().numpy().astype(self.dtypes[name], copy=False)
            for name, item in self.graph.inputs.items()
        }
        size = len(next(iter(feeds.values())))
        step = self.batch_size or size
        parts = [self._part({k: v[start : start + step] for k, v in feeds.items()}) for start in range(0, size, step)]
        joined = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
        named = zip(self.graph.results, joined, strict=True)
        return {name: torch.from_numpy(output.astype(np.float32, copy=False)) for name, output in named}

    def _part(self, feeds: Arrays) -> list[np.ndarray[Any, Any]]:
        size = len(next(iter(feeds.values())))
        lacking = (self.batch_size or size) - size
        if lacking:
            feeds = {k: np.concatenate([v, np.repeat(v[-1:], lacking, axis=0)]) for k, v in feeds.items()}
        outputs = self._run(feeds)
        for name, output in zip(self.graph.results, outputs, strict=True):
            wanted = (size + lacking, *self.graph.shapes.get(name, output.shape[1:]))
            if output.shape != wanted:
                found = f"output {name} is {list(output.shape)} instead of {list(wanted)}"
                raise CheckpointError(str(self.file.path), found, AGAIN)
        return [output[:size] for output in outputs]

    def _run(self, feeds: Arrays) -> list[np.ndarray[Any, Any]]:
        import onnxruntime as ort

        options = ort.RunOptions()
        try:
            with _time_limit(options) if self.file.has_loops else contextlib.nullcontext():
                outputs: list[np.ndarray[Any, Any]] = self.session.run(list(self.graph.results), feeds, options)
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            fix = "set a smaller batch_size" if "llocate" in str(error) else AGAIN
            if options.terminate:
                error, fix = Exception(f"its loops did not end within {LOOP_SECONDS:g} s"), "export it without loops"
            raise CheckpointError(str(self.file.path), f"onnxruntime stopped: {one_line(error)}", fix) from None
        return outputs


def _session(file: OnnxFile) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it logs as an error, it raises, too
    available = ort.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    while True:
        try:
            # without onnxruntime's own second try, which prints
            return ort.InferenceSession(str(file.path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            found = f"onnxruntime cannot load it: {one_line(error)}"
            if len(providers) < 2:
                raise CheckpointError(str(file.path), found, AGAIN) from None
            LOGGER.warning("%s: %s: trying the CPU", file.path, found)
            providers = providers[1:]


@contextlib.contextmanager
def _time_limit(options: Any) -> Iterator[None]:
    """Have onnxruntime stop, between two nodes, after :data:`LOOP_SECONDS`."""

    def stop() -> None:
        options.terminate = True

    timer = threading.Timer(LOOP_SECONDS, stop)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_interface(graph: Graph, inputs: Sequence[Any], outputs: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a model's inputs and outputs, and what to do."""
    found, given = {i.name: i for i in inputs}, {o.name: o for o in outputs}
    for name, item in graph.inputs.items():
        if name not in found:
            yield f"no input {name!r} (it has {', '.join(found)})", "export it with this program"
        else:
            yield from _check_input(found[name], item)
    for name in sorted(found.keys() - graph.inputs.keys()):
        yield f"an input {name!r} that the task has no values for", "export it with this program"
    for name in graph.results:
        if name not in given:
            yield f"no output {name!r} (it has {', '.join(given)})", "export it with this program"
        elif given[name].type not in _FLOATS:
            yield f"output {name} is a {given[name].type}, not floating-point numbers", AGAIN
        elif name in graph.shapes and not _fits(given[name].shape, graph.shapes[name]):
            said = f"output {name} is {given[name].shape[1:]}, the spec's network gives {list(graph.shapes[name])}"
            yield said, "use the keys of the export that say what the network is"
    sizes = {i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], int)}
    if len(sizes) > 1 or 0 in sizes:
        yield f"batches of {', '.join(map(str, sorted(sizes)))} for its inputs", f"{AGAIN}, with one batch size"


def _check_input(entry: Any, item: GraphInput) -> Iterator[tuple[str, str]]:
    kinds = _FLOATS if item.dtype.startswith("float") else {f"tensor({item.dtype})": item.dtype}
    if entry.type not in kinds:
        yield f"input {entry.name} takes a {entry.type}, and {item.dtype} is what it gets", AGAIN
    elif not entry.shape or not _fits(entry.shape, item.shape):
        fix = "use the keys of the export that say how inputs are prepared: their size first"
        yield f"input {entry.name} is {entry.shape[1:]}, the spec composes {list(item.shape)}", fix


def _fits(shape: Sequence[int | str | None], item: Sequence[int]) -> bool:
    """Whether a shape with the batch may be that of some items; a side without a number is open. No shape: any."""
    if not shape:
        return True
    pairs = zip(shape[1:], item, strict=False)
    return len(shape) == len(item) + 1 and all(side == want for side, want in pairs if isinstance(side, int))
