"""Looks at many files, of which those that have not changed since the last one are not opened again. No torch.

What is wrong with a file is looked at anew each time: a disk or a share may be well again, and whoever mended something
wants to see it gone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import PIL

from fiducial.data.cache import digest
from fiducial.data.files import is_file
from fiducial.data.images import ImageFacts, ImageGlance, image_facts, image_glance, image_size
from fiducial.data.kept import Kept, Record, kept_looks, key_of, stamp_of
from fiducial.data.threads import threaded
from fiducial.errors import DatasetError, Problem, UserError
from fiducial.progress import followed

__all__ = ["CONTENT", "DECODED", "GLANCE", "SIZE", "Look", "Wrong", "look_at"]

Found = TypeVar("Found")
Found_co = TypeVar("Found_co", covariant=True)
_AT_ONCE = 4096
_AT_LEAST_EVERY_S = 10.0
"""Records are kept in lots, and from time to time, so that a look that is broken off is not lost."""
_EQUAL = 1024
"""Different findings that are shared by the files that have them."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with a file."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Look(Generic[Found_co]):
    """A way of looking at a file, or at several together.

    ``see`` takes their paths, and raises UserError for what is wrong. ``pack`` and ``unpack`` turn what was found into
    plain JSON and back; None: what was kept does not say enough. Looks of one ``name`` share their records; it changes
    when the same file would be found otherwise.
    """

    name: str
    see: Callable[..., Found_co]
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Found_co | None]


Files = Path | str | tuple[Path | str, ...]
"""A file, or those that are looked at together."""


def look_at(look: Look[Found], paths: Iterable[Files], *, total: int | None = None) -> Iterator[Found | Wrong]:
    """What ``look`` finds in each file, in their order; it says how far it is where that takes long.

    ``total``: how many files there are, where ``paths`` does not say. What is equal is one object: many files cost
    little memory.
    """
    count = len(paths) if isinstance(paths, Sized) else total or 0
    with kept_looks() as kept:
        worker = _Worker(look, kept)
        try:
            with closing(threaded(worker.look_at_some, paths, total=count)) as found:
                yield from followed(found, "looking at the dataset:", total=count)
        finally:
            worker.flush()


class _Worker(Generic[Found]):
    """Looks at some files at a time, in any thread."""

    def __init__(self, look: Look[Found], kept: Kept) -> None:
        self.look, self.kept = look, kept
        self._lock, self._fresh, self._kept_at = Lock(), list[Record](), time.monotonic()
        self._equal: dict[str, Found] = {}

    def look_at_some(self, paths: list[Files]) -> list[Found | Wrong]:
        keys = [_key_of(self.look.name, path) for path in paths]
        known = self.kept.known(keys)
        found: list[Found | Wrong] = []
        fresh: list[Record] = []
        for key, path in zip(keys, paths, strict=True):
            stamp = _stamp_of(path)  # before the look: what is changed during it has another one
            old = known.get(key)
            if stamp and old and old[0] == stamp[0] and (kept := self._unpacked(old[1])) is not None:
                found.append(kept)
                continue
            seen, text = self._see(path)
            found.append(seen)
            if text is not None and stamp is not None and stamp[1]:
                fresh.append((key, stamp[0], text))
        self._add(fresh)
        return found

    def flush(self) -> None:
        """Keep what was found since the last time."""
        with self._lock:
            fresh, self._fresh, self._kept_at = self._fresh, [], time.monotonic()
        if fresh:
            self.kept.keep(fresh)

    def _see(self, path: Files) -> tuple[Found | Wrong, str | None]:
        try:
            seen = self.look.see(*map(Path, path if isinstance(path, tuple) else (path,)))
        except UserError as error:
            return Wrong(error.problems), None
        text = json.dumps(self.look.pack(seen), separators=(",", ":"))
        return self._unpacked(text) or seen, text

    def _unpacked(self, text: str) -> Found | None:
        """What a text says; equal texts give one object."""
        if text not in self._equal:
            try:
                found = self.look.unpack(json.loads(text))
            except (ValueError, TypeError, LookupError, AttributeError):  # a record that nobody here wrote
                found = None
            if found is None or len(self._equal) >= _EQUAL:
                return found
            self._equal[text] = found
        return self._equal[text]

    def _add(self, fresh: list[Record]) -> None:
        with self._lock:
            self._fresh += fresh
            due = len(self._fresh) >= _AT_ONCE or time.monotonic() - self._kept_at > _AT_LEAST_EVERY_S
        if due:
            self.flush()


def _key_of(look: str, path: Files) -> bytes:
    if not isinstance(path, tuple):
        return key_of(look, os.fspath(path))
    first, *others = path
    return key_of("\0".join([look, *map(os.path.abspath, others)]), os.fspath(first))


def _stamp_of(path: Files) -> tuple[bytes, bool] | None:
    if not isinstance(path, tuple):
        return stamp_of(path)
    stamps = [stamp for each in path if (stamp := stamp_of(each))]
    if len(stamps) < len(path):
        return None
    return b"".join(stamp for stamp, _ in stamps), all(settled for _, settled in stamps)


def _size(record: Any) -> tuple[int, int]:
    width, height = record[:2]
    return int(width), int(height)


def _sha256(path: Path) -> bytes:
    if not is_file(path):
        raise DatasetError(str(path), "no file", "check its name")
    try:
        return bytes.fromhex(digest(path))
    except OSError as error:
        raise DatasetError(str(path), f"cannot be read ({error})", "copy it again") from error


_PICTURE = f"picture 1, Pillow {PIL.__version__}"
SIZE: Look[tuple[int, int]] = Look(_PICTURE, image_size, list, _size)
"""(width, height) from the header."""
GLANCE: Look[ImageGlance] = Look(
    _PICTURE,
    image_glance,
    lambda glance: [*glance.size, glance.has_16_bits],
    lambda record: ImageGlance(_size(record), bool(record[2])) if len(record) > 2 else None,
)
DECODED: Look[ImageFacts] = Look(
    _PICTURE,
    image_facts,
    lambda facts: [*facts.size, facts.brightest is not None, facts.brightest, facts.has_more_pages],
    lambda record: ImageFacts(_size(record), record[3], bool(record[4])) if len(record) > 4 else None,
)
"""Decoded once, a file is known to be whole, too."""
CONTENT: Look[bytes] = Look("sha256", _sha256, bytes.hex, bytes.fromhex)
"""SHA-256 of the bytes."""
