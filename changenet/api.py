"""The package as a library: trained models (:func:`load` and its kin), and actions as a function (:func:`run`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch

from changenet.architecture import task_of
from changenet.classify.api import Inspector
from changenet.classify.task import CLASSIFY
from changenet.config import ExperimentSpec
from changenet.segment.api import ChangeDetector
from changenet.segment.task import SEGMENT
from fiducial.actions.perform import perform
from fiducial.actions.result import Result
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES, resolve_model_file
from fiducial.deploy.card import ENTRY, ModelCard
from fiducial.deploy.onnx_file import one_line
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.errors import CheckpointError, SpecError
from fiducial.spec.compose import Source, compose, read_source

__all__ = ["load", "load_detector", "load_inspector", "run"]

Where = str | torch.device | None
_TASKS = {task.name: task for task in (CLASSIFY, SEGMENT)}


@overload
def load(
    path: str | Path, *, task: Literal["classify"], spec: str | Path | None = None, device: Where = None
) -> Inspector: ...
@overload
def load(
    path: str | Path, *, task: Literal["segment"], spec: str | Path | None = None, device: Where = None
) -> ChangeDetector: ...
@overload
def load(
    path: str | Path, *, task: None = None, spec: str | Path | None = None, device: Where = None
) -> Inspector | ChangeDetector: ...
def load(
    path: str | Path,
    *,
    task: Literal["classify", "segment"] | None = None,
    spec: str | Path | None = None,
    device: Where = None,
) -> Inspector | ChangeDetector:
    """Load a trained model: an ``Inspector`` for task classify, a ``ChangeDetector`` for task segment.

    ``path``: a run's results folder, a checkpoint (this project's or TAO's), or an exported ``.onnx`` file. ``task``:
    what it must be; None takes either. ``spec``: the training's YAML; only needed for TAO checkpoints that have no
    ``experiment.yaml`` beside them. ``device``: where torch runs it, a GPU when there is one.

    Raises: CheckpointError when there is no such model, it is damaged, unsafe or of the other task, or what it is
        cannot be told.
    """
    prefix = _TASKS[task].prefix if task else _prefix_in(Path(path))
    found = resolve_model_file(
        path, results_dir=None, prefix=prefix, key="path", suffixes=(*CHECKPOINT_SUFFIXES, ".onnx")
    ).path
    loaded = _exported(found) if found.suffix.lower() == ".onnx" else _checkpoint(found, spec, device)
    if task and loaded.spec.task != task:
        raise CheckpointError(str(found), f"a model of task {loaded.spec.task}", f"give a model of task {task}")
    return loaded


def load_inspector(path: str | Path, *, spec: str | Path | None = None, device: Where = None) -> Inspector:
    """:func:`load` a model of task classify."""
    return load(path, task="classify", spec=spec, device=device)


def load_detector(path: str | Path, *, spec: str | Path | None = None, device: Where = None) -> ChangeDetector:
    """:func:`load` a model of task segment."""
    return load(path, task="segment", spec=spec, device=device)


def run(action: str, spec: str | Path | Mapping[str, Any], *overrides: str) -> Result:
    """Run an action (``train``, ``evaluate``, ``inference``, ``export``) as its command does.

    ``spec``: a YAML file, or its content; ``overrides`` in Hydra's grammar: ``train.num_epochs=3``.

    Raises: UserError naming every problem of the spec and its files; whatever else the action raises.
    """
    given = spec if isinstance(spec, Mapping) else Path(spec).expanduser()
    return perform((CLASSIFY, SEGMENT), action, given, overrides)


def _checkpoint(path: Path, spec: str | Path | None, device: Where) -> Inspector | ChangeDetector:
    checkpoint = read(path)
    task = task_of(checkpoint.state_dict)
    if task is None:
        raise CheckpointError(str(path), "no Visual ChangeNet", "give a checkpoint of task classify or segment")
    composed = compose(ExperimentSpec, Source(_spec_tree(checkpoint, spec, task))).spec
    if task == "classify":
        inspecting = CLASSIFY.runtime(composed)
        inspector = inspecting.torch_predictor(checkpoint)
        inspector.module.to(_device(device))
        return Inspector(inspecting, inspector)
    detecting = SEGMENT.runtime(composed)
    detector = detecting.torch_predictor(checkpoint)
    detector.network.to(_device(device))
    return ChangeDetector(detecting, detector)


def _exported(path: Path) -> Inspector | ChangeDetector:
    card = ModelCard.read(path)
    if card.task not in _TASKS:
        found = "does not say how its inputs are prepared" if not card.task else f"a model of task {card.task}"
        raise CheckpointError(str(path), found, "export it with `changenet export`")
    try:
        tree = Inspector.spec_of(card) if card.task == "classify" else ChangeDetector.spec_of(card)
        spec = compose(ExperimentSpec, Source(tree)).spec
    except KeyError as error:
        raise CheckpointError(str(path), f"its model card lacks {error}", "export the model again") from None
    except (SpecError, TypeError) as error:  # what it says is of another kind, or outside of the spec's bounds
        found = f"its model card says what cannot be: {one_line(error)}"
        raise CheckpointError(str(path), found, "export the model again") from None
    if card.task == "classify":
        inspecting = CLASSIFY.runtime(spec)
        return Inspector(inspecting, OnnxPredictor(path, inspecting))
    detecting = SEGMENT.runtime(spec)
    return ChangeDetector(detecting, OnnxPredictor(path, detecting))


def _device(wanted: Where) -> str | torch.device:
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _prefix_in(folder: Path) -> str:
    """First part of the checkpoints' names, of the task that was trained in a folder."""
    folders = (folder.expanduser() / "train", folder.expanduser())
    found = (task.prefix for task in _TASKS.values() if any(any(f.glob(f"{task.prefix}_*")) for f in folders))
    return next(found, CLASSIFY.prefix)


def _spec_tree(checkpoint: Checkpoint, spec: str | Path | None, task: str) -> dict[str, Any]:
    stored = checkpoint.meta.get("hyper_parameters") if ENTRY in checkpoint.raw else None
    beside = checkpoint.path.resolve().parent / "experiment.yaml"
    if spec is not None:
        return read_source(ExperimentSpec, Path(spec), [f"task={task}"]).tree
    if isinstance(stored, Mapping) and "model" in stored:
        return dict(stored)
    if beside.is_file():
        return read_source(ExperimentSpec, beside, [f"task={task}"]).tree
    found = "does not say what it was trained with"
    raise CheckpointError(str(checkpoint.path), found, "give spec=, the training's YAML file")
