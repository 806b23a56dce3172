"""What predictors of exported graphs share, whatever runs them: their interface, batches of a fixed size, pickles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiducial.deploy.card import ModelCard
from fiducial.deploy.digest import file_digest
from fiducial.deploy.onnx_file import AGAIN
from fiducial.deploy.pixels import PixelInputs, taking_pixels
from fiducial.errors import CheckpointError, Problem
from fiducial.prediction import Batch, Graph, GraphInput, Outputs, Predictor
from fiducial.run.console import LOGGER
from fiducial.task import TaskRuntime

__all__ = ["GraphPredictor", "Port", "adopt_card", "check_interface"]

_FLOATS = ("float32", "float16", "float64", "bfloat16")
_OTHERS = ("bool", "uint8", "int32", "int64")


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph."""

    name: str
    shape: Sequence[int | str | None]
    """With the batch; a side without a number is open. Empty: not known."""
    dtype: str
    """By torch's name; of what torch has none for, the runtime's own name."""


class GraphPredictor(Predictor):
    """Runs an exported graph. A fixed batch size is served by padding the last batch.

    The task's runtime adopts the file's card first, so that inputs are prepared as the model was trained. A pickled one
    names its file, and opens it again, if it is still the same. What runs the graph implements :meth:`open`, which
    returns the graph's inputs and outputs, and :meth:`run`.

    Raises: CheckpointError when the file cannot be loaded, or its inputs or outputs are not those of the spec.
    """

    batch_size: int | None = None
    """Items of a batch that the graph is fixed to; None where it takes any number."""
    most: int | None = None
    """The largest batch that it takes at a time; None: any."""
    padded_to: int | None = None
    """The smallest batch that it takes, which smaller ones are padded to."""

    def __init__(self, path: Path, runtime: TaskRuntime) -> None:
        self.path, self.graph, self.providers = Path(path).absolute(), runtime.graph(), runtime.providers
        card, self.digest = self.read()
        self.card = replace(card, weights=card.weights or self.digest)  # without a card a model is known by its file
        adopt_card(self.card, runtime, path)  # first: the two may contradict each other
        self.pixels = PixelInputs.of(self.graph, self.card)
        if self.pixels is not None:
            self.graph = taking_pixels(self.graph, self.pixels.names)
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "graph", "providers", "card", "digest", "pixels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.read()[1] != self.digest:
            found = "has changed since the model that is unpickled here was loaded from it"
            raise CheckpointError(str(self.path), found, "load and pickle the model again")
        self._open()

    def read(self) -> tuple[ModelCard, str]:
        """The file's card, and a digest of its content. Raises: CheckpointError when it cannot be read."""
        return ModelCard.read(self.path), file_digest(self.path)

    @abstractmethod
    def open(self) -> tuple[Sequence[Port], Sequence[Port]]:
        """Load the file; returns the graph's inputs and outputs. Raises: CheckpointError."""

    @abstractmethod
    def run(self, feeds: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Values of :attr:`Graph.results` for inputs of the graph's own types. Raises: CheckpointError."""

    def _open(self) -> None:
        inputs, outputs = self.open()
        problems = list(check_interface(self.graph, inputs, outputs))
        if problems:
            raise CheckpointError.of(Problem(str(self.path), *problem) for problem in problems)
        self.dtypes: dict[str, torch.dtype] = {port.name: getattr(torch, port.dtype) for port in inputs}
        if self.batch_size is None:
            self.batch_size = next((port.shape[0] for port in inputs if isinstance(port.shape[0], int)), None)

    def predict(self, batch: Batch) -> Outputs:
        """The graph's results, float32, for a batch of the task's loaders.

        Raises: CheckpointError when what runs it stops, or gives something else than the task's outputs.
        """
        feeds = {name: batch[item.batch_key] for name, item in self.graph.inputs.items()}
        if self.pixels is not None:
            feeds = self.pixels(feeds)
        feeds = {name: value.to(self.device, self.dtypes[name]) for name, value in feeds.items()}
        size = len(next(iter(feeds.values())))
        step = self.batch_size or self.most or max(size, 1)
        parts = [self._part({k: v[start : start + step] for k, v in feeds.items()}) for start in range(0, size, step)]
        joined = parts[0] if len(parts) == 1 else [torch.cat(outputs) for outputs in zip(*parts, strict=True)]
        return {name: output.float() for name, output in zip(self.graph.results, joined, strict=True)}

    def _part(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        size = len(next(iter(feeds.values())))
        lacking = max((self.batch_size or self.padded_to or size) - size, 0)
        if lacking:
            feeds = {k: torch.cat([v, v[-1:].expand(lacking, *v.shape[1:])]) for k, v in feeds.items()}
        outputs = self.run(feeds)
        for name, output in zip(self.graph.results, outputs, strict=True):
            wanted = (size + lacking, *self.graph.shapes.get(name, tuple(output.shape[1:])))
            if tuple(output.shape) != wanted:
                found = f"output {name} is {list(output.shape)} instead of {list(wanted)}"
                raise CheckpointError(str(self.path), found, AGAIN)
        return [output[:size] for output in outputs]


def adopt_card(card: ModelCard, runtime: TaskRuntime, path: Path) -> None:
    """Have a task's runtime prepare inputs as the card of a file says.

    Raises: CheckpointError for a model of another task, and, by its key, for what the spec contradicts.
    """
    task = runtime.card().task
    if card.task not in ("", task):
        raise CheckpointError(str(path), f"a model of task {card.task}", f"give a model of task {task}")
    if not card.network:
        LOGGER.warning("%s has no model card: its inputs are prepared as the spec says", path)
    runtime.adopt(card)


def check_interface(graph: Graph, inputs: Sequence[Port], outputs: Sequence[Port]) -> Iterator[tuple[str, str]]:
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
        elif given[name].dtype not in _FLOATS:
            yield f"output {name} is a {given[name].dtype}, not floating-point numbers", AGAIN
        elif name in graph.shapes and not _fits(given[name].shape, graph.shapes[name]):
            said = (
                f"output {name} is {list(given[name].shape[1:])}, the spec's network gives {list(graph.shapes[name])}"
            )
            yield said, "use the keys of the export that say what the network is"
    sizes = {i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], int)}
    if len(sizes) > 1 or 0 in sizes:
        yield f"batches of {', '.join(map(str, sorted(sizes)))} for its inputs", f"{AGAIN}, with one batch size"


def _check_input(port: Port, item: GraphInput) -> Iterator[tuple[str, str]]:
    kinds = _FLOATS if item.dtype.startswith("float") else (item.dtype,)
    if port.dtype not in kinds or port.dtype not in (*_FLOATS, *_OTHERS):
        yield f"input {port.name} takes a {port.dtype}, and {item.dtype} is what it gets", AGAIN
    elif not port.shape or not _fits(port.shape, item.shape):
        fix = "use the keys of the export that say how inputs are prepared: their size first"
        yield f"input {port.name} is {list(port.shape[1:])}, the spec composes {list(item.shape)}", fix


def _fits(shape: Sequence[int | str | None], item: Sequence[int]) -> bool:
    """Whether a shape with the batch may be that of some items; a side without a number is open. No shape: any."""
    if not shape:
        return True
    pairs = zip(shape[1:], item, strict=False)
    return len(shape) == len(item) + 1 and all(side == want for side, want in pairs if isinstance(side, int))
