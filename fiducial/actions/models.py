"""The model files that a spec means: to continue from, to begin with, to run. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES, ResolvedFile, real_file, resolve_model_file
from fiducial.errors import Problem, UserError
from fiducial.spec.compose import Composed
from fiducial.task import Task, load

__all__ = ["check_model_files", "find_model", "find_resume", "not_trained_yet"]

_SUFFIXES = (*CHECKPOINT_SUFFIXES, ".onnx", ".engine", ".trt", ".plan")


def find_model(task: Task, composed: Composed[Any], action: str) -> ResolvedFile:
    """The model file of an action: the TensorRT engine if only that is set, else what ``checkpoint`` resolves to.

    Raises: CheckpointError.
    """
    spec, section = composed.spec, getattr(composed.spec, action)
    engine = getattr(section, "trt_engine", None)
    monitor, mode = task.monitor(spec.train)
    return resolve_model_file(
        engine if engine and not section.checkpoint else section.checkpoint,
        results_dir=composed.root_dir or (str(Path(spec.results_dir).parent) if spec.results_dir else None),
        prefix=task.prefix,
        key=f"{action}.checkpoint",
        monitor=monitor,
        mode="max" if mode == "max" else "min",
        suffixes=_SUFFIXES,
    )


def find_resume(task: Task, spec: Any) -> Path | None:
    """The checkpoint to continue from: the one the spec names, else this network's latest in the results folder.

    Raises: CheckpointError.
    """
    named = spec.train.resume_training_checkpoint_path
    if named:
        return real_file(named, where="train.resume_training_checkpoint_path").resolve()
    latest = Path(spec.results_dir or ".").expanduser() / f"{task.prefix}_latest.pth"
    return real_file(latest).resolve() if latest.exists() or latest.is_symlink() else None


def check_model_files(task: Task, composed: Composed[Any], action: str) -> Iterator[Problem]:
    """Model files that an action needs and that are not there."""
    spec = composed.spec
    try:
        if action == "train":
            if find_resume(task, spec) is None and task.check_weights:
                yield from load(task.check_weights)(spec)
        elif hasattr(getattr(spec, action, None), "checkpoint"):
            find_model(task, composed, action)
    except UserError as error:
        yield from error.problems


def not_trained_yet(problem: Problem, spec: Any, action: str) -> Problem:
    """``problem`` as a warning when it is that a model to be chosen among the run's own is not there."""
    named = getattr(getattr(spec, action, None), "checkpoint", None) or ""
    is_choice = named in ("", "???", "best", "latest") or named.startswith("epoch:")
    return replace(problem, level="warning") if action != "train" and is_choice else problem
