"""Keeping what a frozen network makes of pictures, in memory or on disk, within a bound.

What is kept is never changed and never dropped while a store is open: pictures come in rounds, and making room for the
latest would lose each before it comes again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

__all__ = ["KEY_BYTES", "DiskStore", "FeatureStore", "Features", "NoStore", "RamStore", "make_room"]

log = logging.getLogger("fiducial")

Features = tuple[Tensor, ...]
"""Of one picture, on the CPU, without a batch axis."""
KEY_BYTES = 16
VERSION = 1
_ABOUT, _RECORD, _ALIGNED = "about.json", KEY_BYTES + 4, 64


class FeatureStore(ABC):
    """Features by key (:data:`KEY_BYTES` bytes), of at most ``max_bytes``; all have the same shapes and types."""

    where = "memory"

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes, self.is_full = max_bytes, 0, False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def get(self, key: bytes) -> Features | None:
        """What is kept for ``key``; None when there is nothing."""

    def put(self, key: bytes, features: Features) -> bool:
        """Keep ``features``, unless there is no room; returns whether they are kept."""
        size = sum(_padded(part.nbytes) for part in features)
        if not self.is_full and self.num_bytes + size > self.max_bytes:
            self.is_full = True
            log.warning(
                "features in %s: %d MB are full with %d pictures; the others are computed each time "
                "(train.feature_cache_mb)",
                *(self.where, self.max_bytes // 2**20, len(self)),
            )
        if self.is_full or not self._write(key, features):
            return False
        self.num_bytes += size
        return True

    @abstractmethod
    def _write(self, key: bytes, features: Features) -> bool: ...

    def close(self) -> None:
        """Let go of files; nothing can be kept or read after."""
        self.is_full = True


class RamStore(FeatureStore):
    """Features in the memory of this process."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._kept: dict[bytes, Features] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Features | None:
        return self._kept.get(key)

    def _write(self, key: bytes, features: Features) -> bool:
        self._kept[key] = tuple(part.clone() for part in features)  # a slice would keep its whole batch
        return True


class NoStore(FeatureStore):
    """Keeps nothing, silently."""

    where = "nothing"

    def __init__(self) -> None:
        super().__init__(0)
        self.is_full = True

    def __len__(self) -> int:
        return 0

    def get(self, key: bytes) -> Features | None:
        return None

    def _write(self, key: bytes, features: Features) -> bool:
        return False


class DiskStore(FeatureStore):
    """Features in a folder that later runs, and other processes, read, too::

        about.json       version, shapes and types
        part-0.data      rows of one size, one for each picture
        part-0.keys      for each row its key and a checksum
        part-0.lock      held by the process that adds to the part

    A row is there when its key is; keys are written after rows, so what a killed process leaves half written is not
    seen, and the next writer cuts it off. Whoever comes while the first part is held writes a part of its own. Rows are
    mapped into memory when read, and checked when read first. A folder that cannot be written to is read.

    Raises: OSError when the folder cannot be read or is of another version.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.folder, self.where = folder, str(folder)
        self._rows: dict[bytes, tuple[_Part, int]] = {}
        self._parts: list[_Part] = []
        self._mine: _Part | None = None
        self._writes = True
        with contextlib.suppress(OSError):  # told when a row is to be written
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)  # used now: see make_room
        self._shapes = _read_about(folder / _ABOUT) if (folder / _ABOUT).exists() else None
        if self._shapes is not None:
            self._open_parts()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> Features | None:
        if key not in self._rows or self._shapes is None:
            return None
        part, number = self._rows[key]
        row = part.row(number)
        if row is None:
            log.warning("%s: row %d is damaged, and made again", part.data, number)
            del self._rows[key]
            return None
        return _unpacked(row, self._shapes)

    def _write(self, key: bytes, features: Features) -> bool:
        if not self._writes:
            return False
        try:
            part = self._writer(features)
            self._rows[key] = part, part.append(key, _packed(features))
        except OSError as error:
            self._writes = False
            log.warning("%s: cannot be written to (%s); what is in it is used", self.folder, error.strerror or error)
            return False
        return True

    def close(self) -> None:
        super().close()
        self._rows = {}
        if self._mine:
            self._mine.release()

    def _writer(self, features: Features) -> _Part:
        if self._mine is None:
            shapes = [(str(part.dtype).removeprefix("torch."), tuple(part.shape)) for part in features]
            if self._shapes is None:
                _write_about(self.folder / _ABOUT, shapes)
                self._shapes = shapes
            elif self._shapes != shapes:
                raise OSError(f"it holds features of {self._shapes}, not {shapes}")
            self._mine = next(part for part in self._all_parts() if part.hold())
        return self._mine

    def _all_parts(self) -> Iterator[_Part]:
        yield from self._parts
        size = _row_bytes(self._shapes or [])
        yield from (_Part(self.folder / f"part-{number}", size) for number in count(len(self._parts)))

    def _open_parts(self) -> None:
        size = _row_bytes(self._shapes or [])
        for number in count():
            part = _Part(self.folder / f"part-{number}", size)
            if not part.keys.exists():
                return
            self._parts.append(part)
            self._rows |= {key: (part, row) for row, key in enumerate(part.read_keys())}
            self.num_bytes += part.num_rows * size


class _Part:
    """Rows of ``size`` bytes and their keys."""

    def __init__(self, path: Path, size: int) -> None:
        self.data, self.keys = path.with_suffix(".data"), path.with_suffix(".keys")
        self.size, self.num_rows = size, 0
        self._lock = FileLock(path.with_suffix(".lock"))
        self._files: tuple[int, int] | None = None
        self._sums: dict[int, int] = {}
        self._map: Any = None

    def read_keys(self) -> list[bytes]:
        """The keys of all whole rows."""
        records = self.keys.read_bytes()
        rows = min(len(records) // _RECORD, self.data.stat().st_size // self.size)
        whole = [records[i * _RECORD : (i + 1) * _RECORD] for i in range(rows)]
        self._sums = {row: int.from_bytes(record[KEY_BYTES:], "little") for row, record in enumerate(whole)}
        self.num_rows = rows
        return [record[:KEY_BYTES] for record in whole]

    def row(self, number: int) -> np.ndarray[Any, Any] | None:
        """A copy of a row; None when it is not what was written."""
        if self._map is None or number >= len(self._map):
            rows = self.data.stat().st_size // self.size
            self._map = np.memmap(self.data, np.uint8, "r", shape=(rows, self.size))
        row = np.array(self._map[number])
        wanted = self._sums.pop(number, None)
        return row if wanted is None or zlib.crc32(row.data) == wanted else None

    def hold(self) -> bool:
        """Become the writer of the part; False when another process is."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        flags = os.O_RDWR | os.O_CREAT
        self._files = os.open(self.data, flags, 0o644), os.open(self.keys, flags, 0o644)
        self._cut()
        return True

    def release(self) -> None:
        """Let another process write."""
        for file in self._files or ():
            os.close(file)
        self._files = None
        self._lock.release()

    def append(self, key: bytes, row: bytes) -> int:
        """The number of the row. Raises: OSError when there is no room; then nothing is added."""
        assert self._files is not None
        data, keys = self._files
        try:
            _write_at(data, row, self.num_rows * self.size)
            _write_at(keys, key + zlib.crc32(row).to_bytes(4, "little"), self.num_rows * _RECORD)
        except OSError:
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self.num_rows += 1
        return self.num_rows - 1

    def _cut(self) -> None:
        assert self._files is not None
        for file, size in zip(self._files, (self.size, _RECORD), strict=True):
            os.ftruncate(file, self.num_rows * size)


def _write_at(file: int, content: bytes, place: int) -> None:
    view = memoryview(content)
    os.lseek(file, place, os.SEEK_SET)
    while view:  # a write may stop in the middle, where a disk is full
        view = view[os.write(file, view) :]


Shapes = list[tuple[str, tuple[int, ...]]]


def _write_about(path: Path, shapes: Shapes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps({"version": VERSION, "tensors": shapes}), "utf-8")
    os.replace(part, path)


def _read_about(path: Path) -> Shapes:
    try:
        about = json.loads(path.read_text("utf-8"))
        if about["version"] != VERSION:
            raise OSError(f"made by another version of this program ({about['version']}, not {VERSION})")
        shapes = [(str(name), tuple(int(size) for size in shape)) for name, shape in about["tensors"]]
        [torch.empty(0, dtype=getattr(torch, name)) for name, _ in shapes]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{path.name} is damaged") from error
    return shapes


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _sizes(shapes: Shapes) -> list[int]:
    return [math.prod(shape) * getattr(torch, name).itemsize for name, shape in shapes]


def _row_bytes(shapes: Shapes) -> int:
    return sum(map(_padded, _sizes(shapes)))


def _packed(features: Features) -> bytes:
    parts = (part.contiguous().flatten().view(torch.uint8).numpy().tobytes() for part in features)
    return b"".join(part + bytes(_padded(len(part)) - len(part)) for part in parts)


def _unpacked(row: np.ndarray[Any, Any], shapes: Shapes) -> Features:
    found, place = [], 0
    whole = torch.from_numpy(row)
    for (name, shape), size in zip(shapes, _sizes(shapes), strict=True):
        found.append(whole[place : place + size].view(getattr(torch, name)).view(shape))
        place += _padded(size)
    return tuple(found)


def make_room(root: Path, keep: Path, max_bytes: int) -> int:
    """Remove the folders of ``root`` that were used longest ago, as long as they hold more than half of the bound.

    What another process writes to stays, and so does ``keep``. Returns the bytes of what else is left.
    """
    others = [folder for folder in root.iterdir() if folder.is_dir() and folder != keep] if root.is_dir() else []
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in others}
    for folder in sorted(others, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) <= max_bytes // 2:
            break
        if not _is_held(list(folder.glob("*.lock"))):
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
    return sum(sizes.values())


def _is_held(locks: Sequence[Path]) -> bool:
    for path in locks:
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
    return False
