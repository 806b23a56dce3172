"""Decoded pictures that the processes of a run share (``ram``), and that runs keep (``disk``): one file. No torch.

::

    header    magic, version, how many bytes of pixels there may be, when it was begun, where the next pixels go
    entries   a hash table: key, what the picture's file looked like, where its pixels are, their shape, check sums
    pixels    one picture behind the other; what is written is not changed any more, so that readers need no lock

In ``ram`` the file is memory that has no name and goes with its last process. Whatever goes wrong, pictures are read
from their own files, and that is said once.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from fiducial.data.cache import default_cache_dir
from fiducial.data.kept import key_of, stamp_of

if TYPE_CHECKING:
    from fiducial.spec.common import CacheKind

__all__ = ["PictureCache", "Pixels", "picture_cache"]

log = logging.getLogger("fiducial")

Pixels = npt.NDArray[np.uint8]

NAME = "pictures.bin"
MAGIC, VERSION = b"fidupics", 1
OLD_S = 7 * 86400.0
"""Age at which a full file is begun anew: what is in it may be of pictures that nobody uses any more."""
_PAGE = 4096
_HEADER = struct.Struct("<8sIQdQ?")
_FREE_AT, _TOLD_AT = 28, 36
"""Where in the header it says where the next pixels go, and whether it was said that no more are kept."""
_ENTRY = struct.Struct("<16s32sQ3II")
"""Key, stamp, place of the pixels, shape, CRC-32 of the pixels; a CRC-32 of all that follows it."""
_SUM = struct.Struct("<I")
_ENTRY_BYTES = _ENTRY.size + _SUM.size
_PIXELS_PER_ENTRY = 4096
_FEWEST_ENTRIES = 1024
_PROBES = 256
_FIX = "free space, delete it, or set another cache"


class _UnusableError(Exception):
    """Why a cache file cannot be used."""


def picture_cache(kind: CacheKind, max_mb: int) -> PictureCache | None:
    """The cache that a spec asks for: one for all who ask in this process. None when it is off or cannot be had."""
    if kind == "off" or max_mb == 0:
        return None
    path = default_cache_dir() / NAME if kind == "disk" else None
    key = (path, max_mb)
    if (known := _in_use.get(key)) is not None or key in _given_up:
        return known
    try:
        made = PictureCache(max_mb * 2**20, path)
    except (OSError, OverflowError, _UnusableError, ImportError) as error:
        _given_up.add(key)
        log.warning("%s · not used: pictures are read each time (%s) · %s", path or "cache: ram", error, _FIX)
        return None
    _in_use[key] = made
    return made


_in_use: WeakValueDictionary[tuple[Path | None, int], PictureCache] = WeakValueDictionary()
_given_up: set[tuple[Path | None, int]] = set()


class PictureCache:
    """At most ``max_bytes`` of pixels, in the file ``path`` or, without one, in memory that child processes share.

    Pictures are added until it is full; in random order a newer one is no likelier to be wanted than an older one.
    ``hits`` and ``misses`` count calls of :meth:`kept` in this process.

    Raises: OSError when the file cannot be made or opened; ImportError on systems that cannot lock a part of a file.
    """

    def __init__(self, max_bytes: int, path: Path | None = None, *, joins: bool = False) -> None:
        """``joins``: the file is one that another process has begun, whatever has become of it."""
        import fcntl  # not on Windows

        self._lockf = fcntl.lockf, fcntl.LOCK_EX, fcntl.LOCK_UN
        self.max_bytes, self.path = max_bytes, path
        self._entries = max(_FEWEST_ENTRIES, max_bytes // _PIXELS_PER_ENTRY)
        self._first_pixel = _rounded(_PAGE + self._entries * _ENTRY_BYTES, _PAGE)
        self._size = self._first_pixel + max_bytes
        self._held: Any = None
        if path is None:
            self._fd = self._open_memory()
        else:
            self._fd = self._open_file(path, joins)
        self._map = mmap.mmap(self._fd, self._size, access=mmap.ACCESS_READ)
        self._begin_in_this_process()
        if self._told() and not joins:
            self._say("is full")

    def kept(self, path: str | Path, how: str, make: Callable[[], Pixels]) -> Pixels:
        """What ``make`` makes of the file at ``path``, ``(H, W, 3)`` or ``(H, W)``, or what it made of it before.

        ``how`` tells apart what is made of one file. The array may be one that others share, and is read-only then.
        """
        if self._process != os.getpid():
            self._begin_in_this_process()
        stamp = stamp_of(path)  # before the file is read: what is changed meanwhile has another one
        if stamp is None:
            return make()
        key = key_of(how, os.fspath(path))
        found = self._get(key, stamp[0])
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        pixels = make()
        if stamp[1] and not self._is_closed:
            self._put(key, stamp[0], pixels)
        return pixels

    @property
    def is_full(self) -> bool:
        """Whether no more pictures are added."""
        return self._is_closed or self._told()

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked: it opens the same file."""
        return {"max_bytes": self.max_bytes, "path": self.path or self._path_of_memory(), "joins": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        if hasattr(self, "_fd") and self._held is None:
            os.close(self._fd)  # pixels that somebody still has keep the mapping

    def _begin_in_this_process(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()  # a fork may have copied a taken one
        self._sound: set[int] = set()
        self._is_closed = False
        self.hits = self.misses = 0

    # --- files ----------------------------------------------------------------------------------------------------

    def _open_memory(self) -> int:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("fiducial-pictures")
        else:
            self._held = tempfile.NamedTemporaryFile(prefix="fiducial-pictures-")  # noqa: SIM115  goes with this object
            fd = self._held.fileno()
        self._write_header(fd)
        return fd

    def _path_of_memory(self) -> Path:
        return Path(self._held.name if self._held is not None else f"/proc/{os.getpid()}/fd/{self._fd}")

    def _open_file(self, path: Path, joins: bool) -> int:
        if not joins:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or self._is_outlived(path):
                self._make_file(path)
        return os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))

    def _make_file(self, path: Path) -> None:
        fd, part = tempfile.mkstemp(dir=path.parent, prefix=NAME)
        try:
            self._write_header(fd)
            os.replace(part, path)  # whoever has the old one open goes on with it
        except BaseException:
            os.unlink(part)
            raise
        finally:
            os.close(fd)

    def _write_header(self, fd: int) -> None:
        os.ftruncate(fd, self._size)  # takes no space yet
        header = _HEADER.pack(MAGIC, VERSION, self.max_bytes, time.time(), self._first_pixel, False)
        os.pwrite(fd, header, 0)

    def _is_outlived(self, path: Path) -> bool:
        """Whether a file is to be begun anew: of another size, or full for long. Raises: _UnusableError."""
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
            raise _UnusableError("damaged")
        _, version, max_bytes, begun, _, told = _HEADER.unpack(header)
        if version != VERSION:
            raise _UnusableError(f"of version {version}, this program's is {VERSION}")
        if max_bytes != self.max_bytes:
            sizes = max_bytes / 2**20, self.max_bytes / 2**20
            log.warning("%s: begun anew, its pictures are gone: it was of %d MB, and cache_mb is %d", path, *sizes)
            return True
        if path.stat().st_size != self._size:
            raise _UnusableError("cut off")
        return bool(told) and time.time() - begun > OLD_S

    # --- pictures -------------------------------------------------------------------------------------------------

    def _get(self, key: bytes, stamp: bytes) -> Pixels | None:
        _, entry = self._find(key)
        if entry is None or entry[1] != stamp:
            return None
        _, _, start, height, width, channels, checked = entry
        shape = (height, width, channels) if channels else (height, width)
        pixels: Pixels = np.frombuffer(self._map, np.uint8, prod(shape), start).reshape(shape)
        if self.path is not None and start not in self._sound:  # a machine that stopped may have written half of it
            if zlib.crc32(pixels.data) != checked:
                return None
            self._sound.add(start)
        return pixels

    def _find(self, key: bytes) -> tuple[int | None, Any]:
        """Where the entry of a key is, or would be, None where there is no room; and what it says, if it is whole."""
        slot = int.from_bytes(key[8:], "little") % self._entries
        for probe in range(_PROBES):
            at = _PAGE + (slot + probe) % self._entries * _ENTRY_BYTES
            raw = os.pread(self._fd, _ENTRY_BYTES, at)  # where tmpfs is full, a hole in a mapping ends the process
            if raw[:16] == key:
                is_whole = _SUM.unpack_from(raw, _ENTRY.size)[0] == zlib.crc32(raw[: _ENTRY.size])
                return at, _ENTRY.unpack_from(raw) if is_whole else None
            if not any(raw[:16]):
                return at, None
        return None, None

    def _put(self, key: bytes, stamp: bytes, pixels: Pixels) -> None:
        height, width, *channels = pixels.shape
        data = np.ascontiguousarray(pixels)
        try:
            with self._locked():
                if self._get(key, stamp) is not None:
                    return  # another process was first
                at, _ = self._find(key)
                (start,) = struct.unpack("<Q", os.pread(self._fd, 8, _FREE_AT))
                if at is None or start + data.nbytes > self._size:
                    raise OSError(errno.EFBIG, "full")
                _write(self._fd, data, start)
                entry = _ENTRY.pack(key, stamp, start, height, width, *(channels or (0,)), zlib.crc32(data.data))
                _write(self._fd, struct.pack("<Q", _rounded(start + data.nbytes, 64)), _FREE_AT)
                _write(self._fd, entry + _SUM.pack(zlib.crc32(entry)), at)
        except OSError as error:
            self._close("is full" if error.errno in (errno.EFBIG, errno.ENOSPC) else f"takes no more ({error})")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lockf, take, leave = self._lockf
        with self._lock:
            lockf(self._fd, take, 8, _FREE_AT)
            try:
                yield
            finally:
                lockf(self._fd, leave, 8, _FREE_AT)

    def _told(self) -> bool:
        return bool(self._map[_TOLD_AT])

    def _close(self, why: str) -> None:
        """Add nothing any more; the first of the processes says so."""
        self._is_closed = True
        try:
            with self._locked():
                was_told = self._told()
                os.pwrite(self._fd, b"\1", _TOLD_AT)
        except OSError:
            was_told = False
        if not was_told:
            self._say(why)

    def _say(self, why: str) -> None:
        what, fix = (self.path, f"{_FIX}: a larger cache_mb") if self.path else ("cache: ram", "a larger cache_mb")
        log.warning("%s %s: other pictures are read each time (%d MB) · %s", what, why, self.max_bytes >> 20, fix)


def _write(fd: int, data: Any, at: int) -> None:
    """All of ``data``. A full disk is an error here; through a mapping it would end the process."""
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(fd, left, at)
        left, at = left[done:], at + done


def _rounded(number: int, to: int) -> int:
    return -(-number // to) * to
