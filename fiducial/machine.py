"""What a machine does to a program, told in one line: a full disk, a process killed for memory, a rank that is gone.

Imports nothing heavy.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from fiducial.errors import MachineError, StorageError, UserError

__all__ = ["FIRST_IS_GONE", "explained", "storage_error"]

_STORAGE = {
    "ENOSPC": ("no space left in {folder} ({free:,} MiB free)", "free some, or write to another disk"),
    "EDQUOT": ("your quota is used up in {folder}", "delete files of yours, or write to another disk"),
    "EFBIG": ("a file in {folder} grew beyond what is allowed", "raise the limit (ulimit -f unlimited)"),
    "EROFS": ("{folder} can only be read", "write to another folder"),
    "ENAMETOOLONG": ("a name is too long for the disk of {folder}", "use shorter names"),
}
"""What the errors of a disk mean, by the names of their numbers: not every system has all of them."""
_NUMBERS = {number: told for name, told in _STORAGE.items() if (number := getattr(errno, name, None))}
_FULL = re.compile(
    r"unexpected pos \d+|PytorchStreamWriter|basic_ios::clear|iostream error"  # torch
    r"|\d+ requested and \d+ written"  # numpy
    r"|Write failed\. See previous|Write error at scanline",  # GDAL
)
"""What libraries say when a write was cut off and the number of the error is lost on the way."""

_CUT_OFF = (
    "a write in {folder} was cut off ({free:,} MiB free)",
    "look for a full disk, a quota or a limit (ulimit -f)",
)

_MEMORY = "most likely for memory (dmesg tells)"
_LESS = "lower the number of loader processes (workers), the batch size or the image caches of the dataset section"
_SHARED = "enlarge /dev/shm (docker run --shm-size=8g) or lower the number of workers in the dataset section"
_OTHERS = f"its own lines say why; where it left none it was killed, {_MEMORY}: {_LESS}"

_GROUP = r"(?i:\b(gloo|nccl|tcpstore|processgroup\w*|torch\.distributed\.Dist\w+|DistBackendError|DistNetworkError)\b)"

_PROCESSES: tuple[tuple[str, str, str, str], ...] = (
    (r"DataLoader worker .*Bus error", "a loader process", "killed by a bus error: too little shared memory", _SHARED),
    (r"torch_\d+_\d+.*(No space left|unable to)|unable to (open|allocate|resize|mmap).*shared memory|shm\) for file",
     "a loader process", "shared memory is full", _SHARED),
    (r"received 0 items of ancdata|Too many open files|Errno 24\b", "this process", "has too many open files",
     "allow more (ulimit -n 65536) or lower the number of workers in the dataset section"),
    (r"DataLoader worker .*( fault|Aborted|Illegal)", "a loader process", "crashed in a library it uses",
     "set the number of workers to 0: then the crash shows which file it is"),
    (r"DataLoader worker .*(killed by signal|exited unexpectedly)", "a loader process", f"killed, {_MEMORY}", _LESS),
    (r"DataLoader timed out", "a loader process", "gave no batch in time", f"look at the disk; {_LESS}"),
    (rf"{_GROUP}.*(?i:timed? ?out)|Timed out waiting \d+ ?ms", "another process of this run",
     "gave no answer in time", _OTHERS),
    (rf"{_GROUP}|Connection closed by peer", "another process of this run", "is gone", _OTHERS),
)  # fmt: skip
"""Patterns of messages, the special ones first: who, what happened to it, and what to do."""


FIRST_IS_GONE = MachineError("another process of this run", "is gone: the first one, without a word", _OTHERS)
"""What the others say when the process that writes the records was killed."""


def explained(error: BaseException, folder: Path) -> UserError | None:
    """``error`` in one line when it is the machine's doing, else None; ``folder`` is where files are written.

    Looks at what caused the error too: libraries wrap the system's errors in their own.
    """
    if isinstance(error, (UserError, KeyboardInterrupt, SystemExit)):
        return None
    chain = list(_causes(error))
    for pattern, who, found, fix in _PROCESSES:
        told = next((text for link in chain if re.search(pattern, text := _text(link))), None)
        if told is not None:
            return MachineError(who, f"{found} ({_first_line(told)})", fix)
    chain.sort(key=lambda link: not _is_numbered(link))  # what only the text tells comes last
    known = (storage_error(link, folder) for link in chain)
    return next((found for found in known if found is not None), None)


def storage_error(error: BaseException, path: Path) -> StorageError | None:
    """A full disk, a used up quota and their like; None for anything else. ``path`` is what was written to."""
    if not _is_numbered(error) and not _FULL.search(str(error)):
        return None
    number = getattr(error, "errno", None)
    named = getattr(error, "filename", None)
    folder = _there(Path(named) if isinstance(named, str) and number != errno.ENAMETOOLONG else path)
    found, fix = _NUMBERS.get(number or 0, _CUT_OFF)
    free = shutil.disk_usage(folder).free >> 20
    return StorageError(str(path), found.format(folder=folder, free=free), f"{fix}; files that are complete stay so")


def _is_numbered(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _NUMBERS


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}: {error}".replace("\n", " ")


def _first_line(text: str) -> str:
    """The library's own words, without their class, short enough for a line."""
    line = " ".join(text.partition(": ")[2].split())
    return line if len(line) <= 160 else f"{line[:159]}…"


def _there(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next((folder for folder in (path, *path.absolute().parents) if _is_dir(folder)), Path.cwd())


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # its name is too long
        return False
