"""The model files that a spec means: to continue from, to begin with, to run. No torch unless weights are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.actions.action import Action
from fiducial.checkpoints.resolving import ResolvedFile, real_file, resolve_model_file
from fiducial.deploy.kinds import refuse_engine, runs_an_engine, suffixes
from fiducial.errors import Problem, UserError
from fiducial.spec.compose import Composed
from fiducial.spec.knob import plain
from fiducial.task import Task

if TYPE_CHECKING:
    from fiducial.run.run import Run

__all__ = ["check_model_files", "find_model", "find_resume", "not_trained_yet", "open_model"]


def find_model(task: Task[Any], composed: Composed[Any], action: Action) -> ResolvedFile:
    """The model file of an action: the TensorRT engine if only that is set, else what its model key resolves to.

    Raises: CheckpointError.
    """
    spec, section = composed.spec, getattr(composed.spec, action.name)
    named, engine = getattr(section, action.model_key), getattr(section, "trt_engine", None)
    if runs_an_engine(plain(section)):
        refuse_engine(f"{action.name}.{action.model_key if named else 'trt_engine'}")
    monitor, mode = task.monitor(spec.train)
    return resolve_model_file(
        engine if engine and not named else named,
        results_dir=composed.root_dir or (str(Path(spec.results_dir).parent) if spec.results_dir else None),
        prefix=task.prefix,
        key=f"{action.name}.{action.model_key}",
        monitor=monitor,
        mode="max" if mode == "max" else "min",
        suffixes=suffixes(),
    )


def open_model(task: Task[Any], run: Run) -> Path:
    """The model file of the action, announced."""
    found = find_model(task, run.composed, run.action)
    if found.how != "given":
        run.note(f"{run.action.name}.{run.action.model_key}: {found.path} ({found.how})")
    run.note(f"Loading checkpoint: {found.path}")
    return found.path


def find_resume(task: Task[Any], spec: Any) -> Path | None:
    """The checkpoint to continue from: the one the spec names, else this network's latest in the results folder.

    Raises: CheckpointError.
    """
    named = spec.train.resume_training_checkpoint_path
    if named:
        return real_file(named, where="train.resume_training_checkpoint_path").resolve()
    latest = Path(spec.results_dir or ".").expanduser() / f"{task.prefix}_latest.pth"
    return real_file(latest).resolve() if latest.exists() or latest.is_symlink() else None


def check_model_files(task: Task[Any], composed: Composed[Any], action: Action) -> Iterator[Problem]:
    """Model files that an action needs and that are not there, or that a training could not load."""
    try:
        if action.name == "train":
            yield from task.check_weights(composed.spec, find_resume(task, composed.spec))
        elif action.model_key:
            find_model(task, composed, action)
    except UserError as error:
        yield from error.problems


def not_trained_yet(problem: Problem, spec: Any, action: Action) -> Problem:
    """``problem`` as a warning when it is that a model to be chosen among the run's own is not there."""
    named = getattr(getattr(spec, action.name, None), action.model_key or "-", None) or ""
    is_choice = named in ("", "???", "best", "latest") or named.startswith("epoch:")
    return replace(problem, level="warning") if action.model_key and is_choice else problem
