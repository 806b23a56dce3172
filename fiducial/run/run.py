"""One action executed into one results directory: its folder, its experiment.yaml, its status, its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiducial.actions.action import Action
from fiducial.errors import MachineError, SpecError, StorageError, TrainingError, UserError
from fiducial.machine import FIRST_IS_GONE, explained, storage_error
from fiducial.run.console import LOGGER
from fiducial.run.interrupt import interrupts
from fiducial.run.lock import is_taken, only_run, was_abandoned
from fiducial.run.ranks import global_rank, under_torchrun
from fiducial.run.status import StatusWriter
from fiducial.spec.compose import Composed


@dataclass
class Run:
    """Where an action writes and how it reports."""

    action: Action
    folder: Path
    status: StatusWriter
    composed: Composed[Any]
    verb: str = ""
    """The sub-verb, of an action that has some."""

    @property
    def spec(self) -> Any:
        """The validated spec."""
        return self.composed.spec

    @property
    def section(self) -> Any:
        """The spec's section of the action."""
        return getattr(self.composed.spec, self.action.name)

    def note(self, message: str, **data: Any) -> None:
        """One line on the console and one record in status.json."""
        LOGGER.info("%s", message)
        self.status.write(message, **data)


@contextmanager
def open_run(action: Action, title: str, composed: Composed[Any], *, verb: str = "") -> Iterator[Run]:
    """Create the results folder, write experiment.yaml, and record how the action ends.

    Every exception, an interrupt and out-of-memory included, leaves a FAILURE record and is raised again; what the
    machine did (a full disk, a killed process) as the UserError that says so. The folder is held against other runs,
    unless the action may run beside others.

    Raises: SpecError when no results_dir is set, it cannot be written, or another run has it.
    """
    folder = results_folder(composed.spec.results_dir, action.name)
    main = global_rank() == 0
    label = action.name.capitalize()
    with only_run(folder, action.name) if main and not action.side_by_side else nullcontext(), interrupts():
        status = StatusWriter(folder if main else None)
        try:
            if main:
                write_spec(folder, composed.yaml)
            status.write(f"Starting {title} {action.name}.", "STARTED")
            LOGGER.info("%s results will be saved at: %s", label, folder)
            yield Run(action, folder, status, composed, verb)
            status.write(f"{label} finished successfully.")
            status.write(f"{label} finished successfully.", "SUCCESS")
        except BaseException as error:
            known = explained(error, folder)
            if not main and isinstance(known or error, (MachineError, KeyboardInterrupt)) and _first_is_gone(folder):
                known, status = FIRST_IS_GONE, StatusWriter(folder)
            message = failure_message(label, known or error)
            if isinstance(error, KeyboardInterrupt) and known is None and under_torchrun():
                message += "; torchrun does so too when another process has ended, whose own lines say why"
                LOGGER.error("%s", message)
            _record(status, message)
            if known is None:
                raise
            raise known from error


def _first_is_gone(folder: Path) -> bool:
    """Whether the process that holds the folder, and writes the records, was killed."""
    for _ in range(20):  # it may be ending just now; torchrun's signal to end too must not keep this from being told
        if not is_taken(folder):
            return was_abandoned(folder)
        with suppress(KeyboardInterrupt):
            time.sleep(0.1)
    return False


def _record(status: StatusWriter, message: str) -> None:
    try:
        status.write(message, "FAILURE")
    except OSError as error:  # the disk may be what failed
        LOGGER.error("status.json has no record of the failure: %s", error)


def results_folder(results_dir: str | None, action: str) -> Path:
    """The action's folder, created. Raises: SpecError naming the key when unset or not writable."""
    if not results_dir:
        raise SpecError(
            "results_dir", f"neither results_dir nor {action}.results_dir is set", "set results_dir=./results"
        )
    fix = "set results_dir=./results, or map the container's path: --map-path /results=./results"
    return writable_folder(results_dir, "results_dir", fix)


def writable_folder(name: str | Path, key: str, fix: str) -> Path:
    """The folder, created. Raises: SpecError naming the key when files cannot be written to it; StorageError."""
    try:
        folder = Path(name).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{global_rank()}-{os.getpid()}"  # others may be doing the same
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, ~ of nobody, characters no name can have
        if isinstance(error, OSError) and (known := storage_error(error, Path(name))):
            raise StorageError(key, known.problems[0].found, fix) from None
        raise SpecError(key, f"cannot write to {name} ({getattr(error, 'strerror', None) or error})", fix) from None
    for path in (folder / "experiment.yaml", folder / "status.json"):
        if path.exists() and not path.is_file():
            raise SpecError(key, f"cannot write {path}: it is there and no file", "remove it, or choose another folder")
    return folder


def write_spec(folder: Path, text: str) -> Path:
    """Write ``experiment.yaml``. Raises: SpecError when that cannot be done."""
    path = folder / "experiment.yaml"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        raise SpecError(str(path), found, "make room for it, or choose another results_dir") from None
    return path


def failure_message(label: str, error: BaseException) -> str:
    """The message of a FAILURE record, with TAO's prefixes."""
    text = str(error) or type(error).__name__
    if isinstance(error, (KeyboardInterrupt, SystemExit, SystemError)):
        return f"User/System interruption: {label} was interrupted"
    if isinstance(error, SpecError):
        return f"Configuration error: {text}"
    if isinstance(error, NotImplementedError):
        return f"Feature not implemented: {text}"
    if isinstance(error, (OSError, StorageError)):
        return f"File system error: {text}"
    if isinstance(error, (ValueError, TypeError, UserError)) and not isinstance(error, (MachineError, TrainingError)):
        return f"Parameter validation error: {text}"
    return f"{type(error).__name__}: {text}"
