"""One run per folder: a second one is refused, and told who has it.

The lock is the operating system's on the open file ``.lock``, so it ends with its process, however that ends, and holds
between machines where the file system passes locks on (NFS, unless mounted ``nolock`` or ``local_lock``; CephFS, GPFS,
Lustre with ``flock``). The file stays: removing it would let two later runs lock two files of one name.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fiducial.errors import SpecError
from fiducial.machine import storage_error
from fiducial.run.console import LOGGER

__all__ = ["LOCK", "is_taken", "only_run", "was_abandoned"]

LOCK = ".lock"
_OWNER = ".lock-owner.json"


@contextmanager
def only_run(folder: Path, action: str) -> Iterator[None]:
    """Hold the folder against other runs, on this machine or another. For one process of a run.

    Where the file system has no locks the run goes on, with a warning.

    Raises: SpecError naming the run that holds the folder; StorageError.
    """
    lock = _locked(folder, action)
    owner = folder / _OWNER
    if lock is not None:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        facts = {"action": action, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
        owner.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    try:
        yield
    finally:
        if lock is not None:
            owner.unlink(missing_ok=True)
            lock.release()


def is_taken(folder: Path) -> bool:
    """Whether a run holds the folder now. Creates nothing."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def was_abandoned(folder: Path) -> bool:
    """Whether the run that held the folder last was killed: any other end takes its record away."""
    return (folder / _OWNER).is_file() and not is_taken(folder)


def _locked(folder: Path, action: str) -> FileLock | None:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fix = f"wait until it has ended (or end it there), or set {action}.results_dir to another folder"
        raise SpecError("results_dir", f"{folder} is in use by {_owner(folder)}", fix) from None
    except (OSError, NotImplementedError) as error:
        if known := storage_error(error, folder):
            raise known from error
        LOGGER.warning("%s cannot be locked (%s): start no second run with this folder", folder, error)
        return None
    return lock


def _owner(folder: Path) -> str:
    """The run that holds the folder, in words."""
    try:
        facts = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
        where = f"{facts['host']}{' (this machine)' if facts['host'] == socket.gethostname() else ''}"
        return f"{facts['action']}, process {facts['pid']} of {where}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or is ending
        return "another run"
