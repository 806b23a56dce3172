"""The process of one training: ``python -m fiducial.automl.child module:Task action``, the spec on stdin."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from fiducial import cli
from fiducial.task import Task

_SPEC = "/dev/stdin"
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Do the action; with ``--measure`` then also say how fast and how large the model is."""
    _end_with(os.getppid())
    task, (action, *rest) = _task(argv[0]), argv[1:]
    code = cli.main([task], [action, "-e", _SPEC], prog=task.network)
    if code == 0 and "--measure" in rest:
        from fiducial.automl.measure import measure

        measure(task, _SPEC)
    return code


def _task(name: str) -> Task[Any]:
    module, _, kind = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in kind.split("."):
        found = getattr(found, part)
    task: Task[Any] = found()
    return task


def _end_with(parent: int) -> None:
    """Have the system ask this process to end when the search is gone, where it can."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was already
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
