"""Files that get their name only when they are complete, and links that are never broken.

Imports nothing heavy.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fiducial.checkpoints.resolving import real_file
from fiducial.errors import CheckpointError, UserError
from fiducial.machine import explained

log = logging.getLogger(__name__)

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
_writing: set[Path] = set()


def save_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file through a temporary one in the same folder: complete on the disk before it gets its name.

    What killed processes of this machine left behind in the folder is removed first.
    Raises: StorageError when the disk takes no more, CheckpointError when the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        with _temporary(path) as temporary:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if (known := _told(error, path)) is None:
            raise
        raise known from error


def _told(error: Exception, path: Path) -> UserError | None:
    """What a user is told when a file is not written; None for an error that has other causes."""
    known = explained(error, path)
    if known is None and isinstance(error, OSError):
        return CheckpointError(str(path), f"cannot be written ({error})", "check the folder and its permissions")
    return known


def link(target: Path, link_path: Path) -> None:
    """Makes ``link_path`` a relative symlink to ``target``, in one step; where links fail a hard link, else a copy.

    Raises: CheckpointError when ``target`` is no file, or is ``link_path`` itself; StorageError when the disk is full.
    """
    real = real_file(target).resolve()
    path = Path(os.path.abspath(link_path))
    if real == path.parent.resolve() / path.name:
        raise CheckpointError(str(path), "a link to itself was asked for", "link to the checkpoint's own file")
    relative = os.path.relpath(real, path.parent.resolve())
    ways: tuple[Callable[[Path], object], ...] = (
        lambda temporary: temporary.symlink_to(relative),
        lambda temporary: os.link(real, temporary),
        lambda temporary: shutil.copyfile(real, temporary),
    )
    with _temporary(path) as temporary:
        for attempt, way in enumerate(ways):
            try:
                way(temporary)
                break
            except (OSError, NotImplementedError) as error:
                log.debug("%s: %s", path, error)
                if attempt == len(ways) - 1:
                    raise (_told(error, path) or error) from None
        os.replace(temporary, path)
    _sync_folder(path.parent)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    _writing.add(temporary)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _writing.discard(temporary)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f".*.{_HOST}.*.tmp"):
        number = path.name.split(".")[-2]
        if path not in _writing and number.isdecimal() and not _runs(int(number)):
            path.unlink(missing_ok=True)
            log.info("removed %s, left by a process that was killed", path)


def _runs(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's process, or a system that cannot tell
        return True
    return True


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows, where folders cannot be synced
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot
        log.debug("%s: not synced (%s)", folder, error)
    finally:
        os.close(handle)
