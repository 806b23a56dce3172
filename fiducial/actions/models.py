"""The model files that a spec means: to continue from, to begin with, to run. No torch unless weights are compared."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.actions.action import Action
from fiducial.checkpoints.resolving import (
    CHECKPOINT_SUFFIXES,
    ResolvedFile,
    newest_first,
    real_file,
    resolve_model_file,
)
from fiducial.deploy.digest import ENGINE_SUFFIXES
from fiducial.deploy.kinds import is_named, suffixes
from fiducial.deploy.quantize.artefacts import check_flag, quantizer_of
from fiducial.deploy.quantize.rules import SOURCES
from fiducial.errors import CheckpointError, Problem, UserError
from fiducial.spec.compose import Composed
from fiducial.spec.knob import replaced, walk
from fiducial.task import Task

if TYPE_CHECKING:
    from fiducial.run.run import Run

__all__ = ["check_model_files", "find_model", "find_resume", "not_trained_yet", "open_model", "with_start_weights"]


def find_model(task: Task[Any], composed: Composed[Any], action: Action) -> ResolvedFile:
    """The model file of an action: the TensorRT engine if only that is set, else what its model key resolves to.

    Raises: CheckpointError.
    """
    section = getattr(composed.spec, action.name)
    if action.name == "quantize":
        return _find_source(task, composed, section)
    key, wanted, kinds = _asked(section, action)
    if getattr(section, "is_quantized", False) and not is_named(wanted):
        return _find_quantized(task, composed, action)
    found = _resolve(task, composed, wanted, f"{action.name}.{key}", suffixes=kinds)
    if key == "trt_engine" and not found.path.name.lower().endswith(kinds):
        said, fix = f"{found.path} is no engine ({', '.join(kinds)})", f"give it as {action.name}.{action.model_key}"
        raise CheckpointError(f"{action.name}.{key}", said, fix)
    return found


def _asked(section: Any, action: Action) -> tuple[str, str | None, tuple[str, ...]]:
    """The key that says which model, its value, and the names of files that it may be."""
    named: str | None = getattr(section, action.model_key)
    engine = getattr(section, "trt_engine", None) if action.engine_folder else None
    if is_named(engine) and not is_named(named):
        return "trt_engine", engine, ENGINE_SUFFIXES
    return action.model_key, named, action.model_suffixes or suffixes()


def _find_source(task: Task[Any], composed: Composed[Any], section: Any) -> ResolvedFile:
    """What is quantized: the run's own checkpoint or exported graph, where the spec names none."""
    key, wanted = "quantize.model_path", SOURCES[section.backend]
    found = _resolve(task, composed, section.model_path, key, suffixes=wanted, deployed=("export",))
    if not found.path.name.lower().endswith(wanted):
        kind = "a checkpoint" if wanted == CHECKPOINT_SUFFIXES else "an exported .onnx file"
        said = f"{found.path}: backend {section.backend} takes {kind}"
        raise CheckpointError(key, said, "give one, or choose another quantize.backend")
    if quantizer := quantizer_of(found.path):
        raise CheckpointError(key, f"{found.path} is quantized already ({quantizer})", "give what it was made from")
    return found


def _find_quantized(task: Task[Any], composed: Composed[Any], action: Action) -> ResolvedFile:
    """The newest model that the run's quantize action wrote, of a kind that the action takes."""
    key = f"{action.name}.{action.model_key}"
    folder = Path(_root(composed) or ".") / "quantize"
    if not folder.is_dir():
        absent = f"not set, and there is no {folder}"
        raise CheckpointError(key, absent, "name the quantized model, or run the quantize action first")
    found = _resolve(task, composed, str(folder), key, suffixes=action.model_suffixes or suffixes())
    return ResolvedFile(found.path, f"{key} is not set: {found.how}")


def open_model(task: Task[Any], run: Run) -> Path:
    """The model file of the action, announced."""
    found = find_model(task, run.composed, run.action)
    if found.how != "given":
        run.note(f"{run.action.name}.{_asked(run.section, run.action)[0]}: {found.path} ({found.how})")
    run.note(f"Loading checkpoint: {found.path}")
    return found.path


def find_resume(task: Task[Any], composed: Composed[Any]) -> tuple[Path, ...]:
    """The checkpoints to continue from, to be tried in their order; none when a training is to begin.

    Those of the folder that the spec names, or of the results folder, the newest first; or the one file that it names.

    Raises: CheckpointError when what the spec names is not there, or when a run's only checkpoint is.
    """
    spec, key = composed.spec, "train.resume_training_checkpoint_path"
    named: str = spec.train.resume_training_checkpoint_path or ""
    own = named in ("", "latest")
    folder = Path(spec.results_dir or "." if own else named).expanduser()
    looks_into = folder.is_dir() and (own or not _is_choice(named))
    found = newest_first(folder, prefix=task.prefix, key=key) if looks_into else []
    link = folder / f"{task.prefix}_latest.pth"
    if not found and named:
        return (_resolve(task, composed, named, key, of_folder="latest").path.resolve(),)
    if not found and os.path.lexists(link):
        real_file(link)  # says what is wrong with it
    return tuple(found)


def with_start_weights(task: Task[Any], composed: Composed[Any], note: Callable[[str], object] = lambda _: None) -> Any:
    """The spec, with a file where a key of weights to begin with names a run's folder, or ``best``, ``latest`` …

    ``note`` is told what was taken, and why. Raises: CheckpointError.
    """
    spec = composed.spec
    for key in walk(type(spec)):
        if not key.meta.weights:
            continue
        named = str(reduce(getattr, key.path.split("."), spec) or "")
        if _is_choice(named) or (named and _is_run(Path(named))):
            found = _resolve(task, composed, named, key.path)
            note(f"{key.path}: {found.path} ({found.how})")
            spec = replaced(spec, key.path, str(found.path))
    return spec


def _is_run(path: Path) -> bool:
    """Whether a folder is not one of a hub's repository, whose weights have a name of their own."""
    from fiducial.backbones.hub import DEFAULT_FILE

    try:
        folder = path.expanduser()
        has_weights = (folder / DEFAULT_FILE).is_file() or (folder / f"{DEFAULT_FILE}.index.json").is_file()
        return folder.is_dir() and not has_weights
    except (OSError, RuntimeError):  # too long a name, the home of nobody: said by what reads it
        return False


def _resolve(task: Task[Any], composed: Composed[Any], named: str | None, key: str, **how: Any) -> ResolvedFile:
    spec = composed.spec
    monitor, mode = task.monitor(spec.train)
    return resolve_model_file(
        named,
        results_dir=_root(composed),
        prefix=task.prefix,
        key=key,
        monitor=monitor,
        mode="max" if mode == "max" else "min",
        **how,
    )


def _root(composed: Composed[Any]) -> str | None:
    """The folder that holds those of all actions."""
    results = composed.spec.results_dir
    return composed.root_dir or (str(Path(results).parent) if results else None)


def check_model_files(task: Task[Any], composed: Composed[Any], action: Action) -> Iterator[Problem]:
    """Model files that an action needs and that are not there, or that a training could not load."""
    try:
        if action.name == "train":
            yield from _check_start(task, composed, find_resume(task, composed))
        elif action.name == "automl":  # which begins its trainings anew
            yield from _check_start(task, composed, ())
        elif action.model_key:
            found = find_model(task, composed, action)
            section = getattr(composed.spec, action.name)
            if hasattr(section, "is_quantized"):
                yield from check_flag(found.path, action.name, section.is_quantized)
    except UserError as error:
        yield from error.problems


def _check_start(task: Task[Any], composed: Composed[Any], files: tuple[Path, ...]) -> Iterator[Problem]:
    """Why a training can begin with none of the files that it could be continued from, or with what the spec names."""
    spec = composed.spec if files else with_start_weights(task, composed)
    problems: list[Problem] = []
    for resume in files or (None,):
        found = list(task.check_weights(spec, resume))
        if all(problem.level == "warning" for problem in found):
            yield from found
            return
        problems += found
    own = files and not spec.train.resume_training_checkpoint_path
    anew = f", or another results_dir: {files[0].parent} holds a training, which is continued" if own else ""
    yield from dict.fromkeys(replace(problem, fix=problem.fix + anew) for problem in problems)


def not_trained_yet(problem: Problem, spec: Any, action: Action) -> Problem:
    """``problem`` as a warning when it is that a model to be chosen among the run's own is not there."""
    named = _asked(getattr(spec, action.name), action)[1] if action.model_key else "none"
    may_come = not is_named(named) or named in ("best", "latest") or re.fullmatch(r"epoch:\s*\d+", str(named))
    return replace(problem, level="warning") if may_come else problem


def _is_choice(named: str) -> bool:
    """Whether a word chooses among the run's own files."""
    return named in ("best", "latest") or named.startswith("epoch:")
