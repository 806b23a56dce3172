"""What a model package provides: the one contract between a network and everything shared.

A :class:`Task` imports nothing heavy. Its parts are named as ``"package.module:name"`` and loaded when used, so that
``--help`` and ``check --spec-only`` answer at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fiducial.errors import Problem
from fiducial.spec.knob import Section

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from fiducial.checkpoints.reading import Checkpoint


def load(reference: str) -> Any:
    """The object that ``"package.module:name"`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class GraphInput:
    """One input of an exported model: where its values are in a batch, and the shape of one item."""

    batch_key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """The interface of an exported model."""

    inputs: Mapping[str, GraphInput]
    outputs: tuple[str, ...]
    batch_axis: str
    """Name of the batch axis where it is dynamic."""


@dataclass(frozen=True)
class Task:
    """One task of one network (for example Visual ChangeNet's ``classify``)."""

    network: str
    """TAO's name of the network, also the name of its command: ``visual_changenet``."""
    name: str
    """The value of the spec key ``task``."""
    title: str
    """How status messages call the network: ``Visual ChangeNet``."""
    prefix: str
    """First part of ``<prefix>_latest.pth``."""
    spec: str
    """The spec model, a :class:`~fiducial.spec.knob.Section`."""
    check_spec: str
    """``(spec, action) -> Iterator[Problem]``: rules that span keys. Light."""
    check_data: str
    """``(spec, action, thorough) -> DataReport``: what the dataset's files say. Light (no torch)."""
    runtime: str
    """The heavy half: a :class:`TaskRuntime`."""
    monitors: str
    """``(metric) -> "min" | "max"``: which way a metric that checkpoints are ranked by is better. Light."""
    check_weights: str = ""
    """``(spec) -> Iterator[Problem]``: files of pretrained weights that are not there. Light."""
    actions: tuple[str, ...] = ("train", "evaluate", "inference", "export")
    default_monitor: str = "val_loss"
    export_extras: str = ""
    """``(runtime, onnx_path) -> None``: files that another runtime wants beside the ONNX file."""

    def monitor(self, train: Any) -> tuple[str, str]:
        """The metric that chooses the best checkpoint of a spec's ``train`` section, and its direction."""
        kept = train.checkpointer
        name = kept.monitor or getattr(getattr(train, "optim", None), "monitor_name", None) or self.default_monitor
        return name, kept.mode or load(self.monitors)(name)

    def spec_model(self) -> type[Section]:
        """The class of the task's specs."""
        model: type[Section] = load(self.spec)
        return model


@dataclass
class DataReport:
    """What a look at a dataset found."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Counts worth showing: rows per split, label histogram."""
    problems: list[Problem] = field(default_factory=list)


class Predictor(Protocol):
    """Maps batches to outputs, whatever runs the model; owns no preprocessing and no metric."""

    runtime: str
    """``torch``, ``onnxruntime`` or ``tensorrt``."""

    def predict(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The model's raw output for one batch of the task's loader."""
        ...


class Evaluator(Protocol):
    """Collects outputs with the rows they belong to, on every rank, and turns them into metrics and files."""

    def update(self, output: torch.Tensor, batch: Mapping[str, Any]) -> None:
        """Take one batch of raw outputs."""
        ...

    def finish(self) -> Any:
        """Gather what every rank holds (a collective call), in dataset order, and forget it."""
        ...


class TaskRuntime(Protocol):
    """The part of a task that needs torch. One instance serves one spec."""

    def __init__(self, spec: Any) -> None: ...

    def network(self) -> nn.Module:
        """The untrained network."""
        ...

    def module(self, *, pretrained: bool) -> Any:
        """The LightningModule of ``train``; ``pretrained`` loads the weights that the spec names."""
        ...

    def datamodule(self) -> Any:
        """The LightningDataModule of ``train``, with ``num_batches``."""
        ...

    def loader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Batches of ``test`` or ``infer`` in dataset order; ranks share whole batches of one list."""
        ...

    def torch_predictor(self, checkpoint: Checkpoint) -> Predictor:
        """A predictor over a checkpoint's weights; takes over the preprocessing the checkpoint was trained with."""
        ...

    def use_normalization_of(self, meta: Mapping[str, Any]) -> None:
        """Prepare inputs as the model that says this of itself was trained."""
        ...

    def graph(self) -> Graph:
        """Names and shapes of the exported model."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What the exported model says of its inputs, as plain data."""
        ...

    def evaluator(self) -> Evaluator:
        """What collects the outputs of ``evaluate`` or ``inference``."""
        ...

    def write(self, action: str, results: Any, folder: Path, facts: Mapping[str, Any]) -> dict[str, float]:
        """Write the action's files; returns the KPIs for status.json."""
        ...

    def facts(self, action: str) -> dict[str, Any]:
        """What a report says about the data and the model."""
        ...


def dispatch(tasks: Sequence[Task], name: str) -> Task:
    """The task with this name. Raises: KeyError."""
    return {task.name: task for task in tasks}[name]
