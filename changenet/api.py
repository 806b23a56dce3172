"""The package as a library: trained models (:func:`load` and its kin), and actions as a function (:func:`run`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

from changenet.architecture import task_of
from changenet.classify.api import Inspector
from changenet.classify.task import CLASSIFY
from changenet.config import ExperimentSpec
from changenet.segment.api import ChangeDetector
from changenet.segment.task import SEGMENT
from fiducial.actions.perform import perform
from fiducial.actions.result import Result
from fiducial.deploy.card import ModelCard
from fiducial.deploy.kinds import open_predictor, runtime_of
from fiducial.errors import CheckpointError
from fiducial.library import (
    Where,
    checkpoint_of,
    foreign,
    model_file,
    predictor_of,
    ready,
    spec_of_export,
    stored_tree,
)
from fiducial.spec.compose import Source, compose

__all__ = ["load", "load_detector", "load_inspector", "run"]

_TASKS = {task.name: task for task in (CLASSIFY, SEGMENT)}


@overload
def load(
    path: str | Path,
    *,
    task: Literal["classify"],
    spec: str | Path | None = None,
    device: Where = None,
    compile: bool = False,
) -> Inspector: ...
@overload
def load(
    path: str | Path,
    *,
    task: Literal["segment"],
    spec: str | Path | None = None,
    device: Where = None,
    compile: bool = False,
) -> ChangeDetector: ...
@overload
def load(
    path: str | Path, *, task: None = None, spec: str | Path | None = None, device: Where = None, compile: bool = False
) -> Inspector | ChangeDetector: ...
def load(
    path: str | Path,
    *,
    task: Literal["classify", "segment"] | None = None,
    spec: str | Path | None = None,
    device: Where = None,
    compile: bool = False,
) -> Inspector | ChangeDetector:
    """Load a trained model: an ``Inspector`` for task classify, a ``ChangeDetector`` for task segment.

    ``path``: a run's results folder, a checkpoint (this project's or TAO's), or an exported model. ``task``:
    what it must be; None takes either. ``spec``: the training's YAML; only needed for TAO checkpoints that have no
    ``experiment.yaml`` beside them. ``device``: where torch runs it, a GPU when there is one. ``compile``:
    a checkpoint's network for this machine, at its first use: it takes minutes once, and seconds at later starts.

    Raises: CheckpointError when there is no such model, it is damaged, unsafe or of the other task, or what it is
        cannot be told.
    """
    prefix = _TASKS[task].prefix if task else _prefix_in(Path(path))
    found = model_file(path, prefix)
    loaded = _exported(found) if runtime_of(found).name != "torch" else _checkpoint(found, spec, device, compile)
    if task and loaded.spec.task != task:
        raise CheckpointError(str(found), f"a model of task {loaded.spec.task}", f"give a model of task {task}")
    return loaded


def load_inspector(
    path: str | Path, *, spec: str | Path | None = None, device: Where = None, compile: bool = False
) -> Inspector:
    """:func:`load` a model of task classify."""
    return load(path, task="classify", spec=spec, device=device, compile=compile)


def load_detector(
    path: str | Path, *, spec: str | Path | None = None, device: Where = None, compile: bool = False
) -> ChangeDetector:
    """:func:`load` a model of task segment."""
    return load(path, task="segment", spec=spec, device=device, compile=compile)


def run(action: str, spec: str | Path | Mapping[str, Any], *overrides: str) -> Result:
    """Run an action (``train``, ``evaluate``, ``inference``, ``export``) as its command does.

    ``spec``: a YAML file, or its content; ``overrides`` in Hydra's grammar: ``train.num_epochs=3``.

    Raises: UserError naming every problem of the spec and its files; whatever else the action raises.
    """
    return perform((CLASSIFY, SEGMENT), action, spec, overrides)


def _checkpoint(path: Path, spec: str | Path | None, device: Where, compile: bool) -> Inspector | ChangeDetector:
    checkpoint = checkpoint_of(path)
    task = task_of(checkpoint.state_dict)
    if task is None:
        raise foreign(checkpoint, "Visual ChangeNet", "give a checkpoint of task classify or segment")
    tree = stored_tree(_TASKS[task], checkpoint, spec, [f"task={task}"])
    composed = compose(ExperimentSpec, Source(tree)).spec
    if task == "classify":
        inspecting = CLASSIFY.runtime(composed)
        inspector = ready(predictor_of(checkpoint, inspecting), device, compile)
        return Inspector(inspecting, inspector)
    detecting = SEGMENT.runtime(composed)
    detector = ready(predictor_of(checkpoint, detecting), device, compile)
    return ChangeDetector(detecting, detector)


def _exported(path: Path) -> Inspector | ChangeDetector:
    def tree_of(card: ModelCard) -> dict[str, Any]:
        return Inspector.spec_of(card) if card.task == "classify" else ChangeDetector.spec_of(card)

    spec, card = spec_of_export(ExperimentSpec, path, _TASKS, tree_of, "export it with `changenet export`")
    if card.task == "classify":
        inspecting = CLASSIFY.runtime(spec)
        return Inspector(inspecting, open_predictor(path, inspecting))
    detecting = SEGMENT.runtime(spec)
    return ChangeDetector(detecting, open_predictor(path, detecting))


def _prefix_in(folder: Path) -> str:
    """First part of the checkpoints' names, of the task that was trained in a folder."""
    folders = (folder.expanduser() / "train", folder.expanduser())
    found = (task.prefix for task in _TASKS.values() if any(any(f.glob(f"{task.prefix}_*")) for f in folders))
    return next(found, CLASSIFY.prefix)
