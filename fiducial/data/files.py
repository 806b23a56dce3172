"""What is at a path of somebody else's data, asked so that no name raises anything; and what a file is by its bytes."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePath

__all__ = [
    "IMAGE_SUFFIXES",
    "is_file",
    "is_folder",
    "nearby",
    "odd_name",
    "same_name",
    "what_bytes_are",
    "why_unreadable",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".pgm", ".ppm")
UNREADABLE_FOLDER = "its folder may not be read"
"""What :func:`why_unreadable` finds where this user may not look."""
HEAD = 512
"""Bytes at the beginning of a file that tell what it is."""
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a git-lfs pointer: the data was not fetched", "run git lfs pull"),
    (0, b"../.git/annex", "a git-annex pointer: the data was not fetched", "run git annex get"),
    (0, b"/annex/objects", "a git-annex pointer: the data was not fetched", "run git annex get"),
    (0, b"%!PS", "a PostScript program", "convert it: no program in a file is run here"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript program", "convert it: no program in a file is run here"),
    (0, b"%PDF", "a PDF document", "convert its pages to PNG"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"\x1f\x8b", "gzip-compressed data", "unpack it"),
    (0, b"II*\x00", "a TIFF of a kind that is not read here", "save it as 8 or 16 bits with one channel, or 8-bit RGB"),
    (0, b"MM\x00*", "a TIFF of a kind that is not read here", "save it as 8 or 16 bits with one channel, or 8-bit RGB"),
    (4, b"ftypheic", "a HEIC photograph", "convert it to JPEG or PNG"),
    (4, b"ftypheix", "a HEIC photograph", "convert it to JPEG or PNG"),
    (4, b"ftypmif1", "a HEIC photograph", "convert it to JPEG or PNG"),
    (4, b"ftyp", "a video, or a photograph of a kind that is not read here", "convert it to JPEG or PNG"),
)


def what_bytes_are(head: bytes) -> tuple[str, str] | None:
    """What a file that is not what it should be is by its first :data:`HEAD` bytes, and what to do; None: unknown."""
    for offset, signature, found, fix in _SIGNATURES:
        if head[offset:].startswith(signature):
            return found, fix
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")):
        return "a web page, an error message perhaps", "fetch it again, and look at it in a browser"
    if head and not head.strip(b"\0"):
        return "zeros", "copy it again: the disk or the transfer lost its content"
    return None


def why_unreadable(path: Path) -> tuple[str, str] | None:
    """What is wrong with ``path`` as a file with content, and what to do; None when it is one that can be opened."""
    try:
        found = path.stat()
    except ValueError:
        return "a name with a NUL character", "mend the name where it is listed"
    except OSError as error:
        return _why_missing(path, error)
    if stat.S_ISDIR(found.st_mode):
        return "a folder, not a file", "name a file"
    if not stat.S_ISREG(found.st_mode):
        return "a device or a pipe, not a file", "name a file"
    if not found.st_size:
        return "an empty file", "copy it again"
    return None if os.access(path, os.R_OK) else ("may not be read", "give this user the right to read it")


def _why_missing(path: Path, error: OSError) -> tuple[str, str]:
    if error.errno == errno.ENAMETOOLONG:
        return "a name longer than the disk takes", "mend the name where it is listed: an open quote joins lines"
    if error.errno == errno.ELOOP:
        return "a link to itself", "make the link anew"
    if error.errno == errno.EACCES:
        return UNREADABLE_FOLDER, "give this user the right to read it"
    if path.is_symlink():
        return (
            f"a link to {os.readlink(path)}, which is not there",
            "fetch what it points to (git annex, dvc), or copy the files",
        )
    beside = ", ".join(other.name for other in nearby(path))
    return "no such file", f"beside it: {beside}" if beside else "check folder and name"


def is_file(path: Path) -> bool:
    """Whether a plain file is there; False for every name that cannot be."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False for every name that cannot be."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def odd_name(text: str) -> str | None:
    """What about a name in a list explains that nothing is found under it, as a sentence; None when nothing does."""
    if "\0" in text:
        return "it holds a NUL character: write the list anew as plain text"
    if "\\" in text:
        return "it is written with backslashes: write forward slashes"
    if any(part != part.strip() for part in text.split("/")):
        return "it has a blank at its beginning or end: remove the blanks beside the separators of the list"
    if any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        return "it is longer than a name can be: mend it (an open quote joins lines)"
    return None


def same_name(one: str, other: str) -> bool:
    """Whether two names differ in nothing but how accents are encoded: ``ü`` is one character or two."""
    return one != other and unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def nearby(path: Path) -> list[Path]:
    """Files beside ``path`` that have its name with another extension, other capitals or accents, sorted."""
    try:
        changed = path.parent.stat().st_mtime_ns
        names = _names_by_stem(path.parent, changed).get(_stem(path.name), ())
    except (OSError, ValueError):
        return []
    return [path.with_name(name) for name in sorted(names) if name != path.name]


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", PurePath(name).stem).casefold()


@lru_cache(maxsize=8)
def _names_by_stem(folder: Path, changed: int) -> dict[str, list[str]]:
    """The names in ``folder`` as of ``changed``; kept, because a data set misses thousands of images at once."""
    found = defaultdict(list)
    for name in os.listdir(folder):
        found[_stem(name)].append(name)
    return dict(found)
