"""One training of a search: what it is to do, and the process that does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fiducial.errors import SpecError, one_line
from fiducial.run.status import read_status
from fiducial.task import Task

__all__ = ["Ending", "Job", "Order", "ProcessJob", "child_command", "run_child"]

Kind = Literal["finished", "stopped", "out of memory", "not a number", "killed", "failed"]
_PATIENCE_S = 60.0
"""Seconds that a process has to end kindly."""
_MEASURED = "measured.json"
_DIVERGED = ("diverged", "no longer finite", "nan ", "not finite")


@dataclass(frozen=True)
class Order:
    """What a training is to do."""

    number: int
    values: Mapping[str, Any]
    seed: int
    epochs: int
    """As long as its schedule is."""
    until: int | None = None
    """The epoch after which it is ended, its checkpoint being kept; None: the last."""
    begin_from: int | None = None
    """The number of the training whose last checkpoint it goes on from."""

    @property
    def folder(self) -> str:
        """Its name below the folder of the search."""
        return folder_of(self.number)


def folder_of(number: int) -> str:
    """The name of a trial's folder."""
    return f"trial_{number:03d}"


@dataclass(frozen=True)
class Ending:
    """How a training ended."""

    kind: Kind
    message: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


class Job(Protocol):
    """A training that is under way."""

    def validations(self) -> list[tuple[int, Mapping[str, Any]]]:
        """The epochs (counted from 1) that were validated since the last call, with their KPIs."""

    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""

    def stop(self) -> None:
        """Ask it to end, more than once where it does not."""


class ProcessJob:
    """A training as a process of its own, with its own results folder."""

    def __init__(self, command: Sequence[str], tree: Mapping[str, Any], folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder / "train"
        self._seen: set[int] = set()
        self._asked = 0.0
        self._size = -1
        folder.mkdir(parents=True, exist_ok=True)
        self.process = _start(command, tree, folder / "train.log", env)

    def validations(self) -> list[tuple[int, Mapping[str, Any]]]:
        path = self.folder / "status.json"
        size = path.stat().st_size if path.is_file() else -1
        if size == self._size:
            return []
        self._size = size
        found = {}
        for record in read_status(path):
            if record.get("message") == "Eval metrics generated." and isinstance(record.get("epoch"), int):
                found[record["epoch"] + 1] = record.get("kpi") or {}
        new = [(epoch, kpis) for epoch, kpis in sorted(found.items()) if epoch not in self._seen]
        self._seen |= {epoch for epoch, _ in new}
        return new

    def ending(self) -> Ending | None:
        code = self.process.poll()
        if code is None:
            if self._asked and time.monotonic() - self._asked > _PATIENCE_S:
                self.process.kill()
            return None
        return _ending(code, self.folder, asked=self._asked > 0)

    def stop(self) -> None:
        if not self._asked and self.process.poll() is None:
            self._asked = time.monotonic()
            self.process.terminate()


def child_command(task: Task[Any], action: str, *extra: str) -> list[str]:
    """The command of a process that does an action of a task, whose spec is what it is given on stdin.

    Raises: SpecError for a task that another process could not find.
    """
    kind = type(task)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        fix = "define its class at the top of a module"
        raise SpecError(task.name, "another process cannot import this task", fix)
    return [sys.executable, "-m", "fiducial.automl.child", f"{kind.__module__}:{kind.__qualname__}", action, *extra]


def run_child(command: Sequence[str], tree: Mapping[str, Any], log: Path, env: Mapping[str, str]) -> int:
    """Run such a process to its end; returns its exit code."""
    process = _start(command, tree, log, env)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait(_PATIENCE_S)
        raise


def _start(
    command: Sequence[str], tree: Mapping[str, Any], log: Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with (
        tempfile.TemporaryFile() as spec,
        log.open("ab") as output,
    ):  # the spec may hold secrets: no name, no command line
        spec.write(json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        spec.seek(0)
        paths = os.pathsep.join(path for path in sys.path if path)
        env = {**os.environ, "PYTHONPATH": paths, **env}
        return subprocess.Popen(
            command, stdin=spec, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


def _ending(code: int, folder: Path, *, asked: bool) -> Ending:
    if code == 0:
        path = folder.parent / _MEASURED
        measured = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return Ending("finished", measured=measured)
    records = [record for record in read_status(folder / "status.json") if record.get("status") == "FAILURE"]
    message = one_line(records[-1].get("message", "")) if records else ""
    if asked:
        return Ending("stopped", message)
    if code < 0:
        name = signal.Signals(-code).name
        kind: Kind = "killed"
        return Ending(kind, f"killed by {name}{', most likely for memory' if name == 'SIGKILL' else ''}")
    lowered = f"{message} {_log_end(folder.parent / 'train.log')}".lower()
    if "out of memory" in lowered or "memoryerror" in lowered:
        return Ending("out of memory", message or "out of memory")
    if any(part in message.lower() for part in _DIVERGED):
        return Ending("not a number", message)
    return Ending("failed", message or f"it ended with exit code {code}: see {folder.parent / 'train.log'}")


def _log_end(path: Path, count: int = 4000) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - count))
        return file.read().decode("utf-8", "replace")
