"""Reading text that somebody else wrote: what is wrong with it is named with its line."""

from __future__ import annotations

from pathlib import Path

from fiducial.data.files import why_unreadable
from fiducial.errors import DatasetError

__all__ = ["read_text"]

MAX_BYTES = 1 << 30
"""Size (1 GiB) above which a file is not taken for text."""


def read_text(path: Path, *, kind: str, fix: str) -> str:
    """The UTF-8 text of a file, with or without a byte order mark; line ends as they are.

    ``kind`` is what it is to be read as (``a list``), ``fix`` what to do when it is something else.
    Raises: DatasetError naming the file, and the line where there is one.
    """
    cannot = f"cannot be read as {kind}"
    if wrong := why_unreadable(path):
        raise DatasetError(str(path), f"{cannot}: {wrong[0]}", wrong[1])
    if path.stat().st_size > MAX_BYTES:
        found = f"{cannot}: {path.stat().st_size / 2**30:.1f} GiB"
        raise DatasetError(str(path), found, f"split it: at most {MAX_BYTES / 2**30:.0f} GiB are read")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(str(path), f"{cannot}: {error}", "copy it to another disk") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DatasetError(str(path), f"{cannot}: it is UTF-16 text", fix)
    if b"\0" in data:
        where = f"{path}:{data.count(10, 0, data.index(0)) + 1}"
        raise DatasetError(where, f"{cannot}: a NUL character", "write the file anew as plain text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"{cannot}: byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise DatasetError(f"{path}:{line}", found, fix) from None
