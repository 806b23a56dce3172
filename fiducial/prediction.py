"""What passes between a network, whatever runs it, and what is made of its outputs. No torch at run time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fiducial.spec.common import CompileMode

__all__ = ["Batch", "Evaluator", "Graph", "GraphInput", "Kpis", "Outputs", "Predictor", "split"]

ResultT = TypeVar("ResultT")

Batch = Mapping[str, Any]
"""What a loader of the task gives."""
Outputs = Mapping[str, "Tensor"]
"""A network's raw output for one batch, by name: the names of :attr:`Graph.outputs`."""
Kpis = dict[str, "float | str | None"]
"""Numbers (or short texts) by their names in status.json. NaN and None: there is nothing to compute it from."""


def split(batch: Batch, names: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of a batch with other names, and those with these."""
    return {k: v for k, v in batch.items() if k not in names}, {k: v for k, v in batch.items() if k in names}


@dataclass(frozen=True)
class GraphInput:
    """One input of an exported model: where its values are in a batch, the shape of one item, its type."""

    batch_key: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    image: bool = False
    """Whether it is a picture ``(..., 3, H, W)``, or several, normalised with the model's mean and std."""


@dataclass(frozen=True)
class Graph:
    """The interface of an exported model."""

    inputs: Mapping[str, GraphInput]
    outputs: tuple[str, ...]
    """Names of what the network's ``forward`` returns, in its order."""
    batch_axis: str
    """Name of the batch axis where it is dynamic."""
    needed: tuple[str, ...] = ()
    """The outputs that the task's evaluator reads; empty: all."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of one item of an output; of those that are not named here, anything is taken."""

    @property
    def results(self) -> tuple[str, ...]:
        """The outputs that a predictor must give."""
        return self.needed or self.outputs


class Predictor(ABC):
    """Maps batches to outputs, whatever runs the model; owns no preprocessing and no metric."""

    runtime: ClassVar[str]
    """``torch``, ``onnxruntime``, …"""
    network: nn.Module | None = None
    """The module, where torch runs it: it is moved to where the batches are."""
    compiled_calls: ClassVar[tuple[str, ...]] = ("forward",)
    """The network's methods that :meth:`predict` calls with nothing but batches of tensors."""
    results_call: ClassVar[str] = "forward"
    """The network's method that takes the graph's inputs; a lone tensor that it gives is the graph's one result."""

    @abstractmethod
    def predict(self, batch: Batch) -> Outputs:
        """The outputs of :attr:`Graph.results` for one batch of the task's loaders."""

    @property
    def module(self) -> nn.Module:
        """The module that torch runs. Raises: ValueError where something else runs the model."""
        if self.network is None:
            raise ValueError(f"the model runs in {self.runtime}: load the checkpoint it was exported from")
        return self.network

    @property
    def device(self) -> torch.device:
        """Where it wants its batches: beside its weights, where it runs in torch."""
        import torch

        weights = iter(()) if self.network is None else self.network.parameters()
        return next((weight.device for weight in weights), torch.device("cpu"))

    def compile(self, mode: CompileMode | bool = True) -> None:
        """Compile what torch runs, when it is first called; see :mod:`fiducial.deploy.compiled`.

        Raises: ValueError where something else runs the model.
        """
        from fiducial.deploy.compiled import compile_calls

        compile_calls(self.module, self.compiled_calls, mode)

    def facts(self) -> Mapping[str, str]:
        """What a report says about how it ran."""
        return {}


class Evaluator(ABC, Generic[ResultT]):
    """Collects outputs with the items they belong to, on every rank, and turns them into numbers and files.

    One class serves validation in training, ``evaluate`` and ``inference``, whatever ran the model: what the numbers
    mean cannot differ between them. A step must not wait for its device: what :meth:`update` can leave there it leaves.
    """

    on_host: frozenset[str] = frozenset()
    """Entries of a batch that are read one by one: they stay on the CPU, where nobody waits for them."""

    @abstractmethod
    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        """Take the outputs of one batch; ``source`` is the place of its loader among the stage's loaders."""

    @abstractmethod
    def finish(self) -> ResultT:
        """What all ranks hold, in the order of the dataset (a collective call); forgets it."""

    @abstractmethod
    def kpis(self, result: ResultT) -> Kpis:
        """The numbers of the stage under their names in status.json."""

    def write(self, result: ResultT, facts: Mapping[str, Any]) -> tuple[Path, ...]:
        """Write the files of ``evaluate`` or ``inference``, on one rank; ``facts`` say what ran, where and when."""
        return ()
