"""What was found about files, kept from run to run: one SQLite file, which may be deleted whenever nothing runs.

A record belongs to a file as it was: its path, size, times of change and inode. Processes share the store. Where it
cannot be used (a full disk, a folder that is read only, a damaged file, one of a newer version) the run goes on without
it and says so once.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from fiducial.data.cache import default_cache_dir

__all__ = ["Kept", "Record", "kept_looks", "key_of", "stamp_of"]

log = logging.getLogger("fiducial")

NAME = "looks.sqlite3"
VERSION = 1
MAX_BYTES = 1 << 29
"""Size (512 MiB, some five million files) above which the store is emptied: files that are gone leave records."""
SETTLED_NS = 2 * 10**9
"""Time after a file's last change before a look at it is kept: one more in a tick of the clock would not show."""
_WAIT_S = 10.0
_STAMP = struct.Struct("<QqqQ")
_64_BITS = (1 << 64) - 1

Record = tuple[bytes, bytes, str]
"""Key, stamp, and what was found as text."""


def key_of(look: str, path: str) -> bytes:
    """What a look at a file is kept under; those of one folder are neighbours in the store."""
    folder, name = os.path.split(path if os.path.isabs(path) else os.path.abspath(path))
    return _digest(folder) + blake2b(os.fsencode(f"{look}\0{name}"), digest_size=8).digest()


@lru_cache(maxsize=256)
def _digest(folder: str) -> bytes:
    return blake2b(os.fsencode(folder), digest_size=8).digest()


def stamp_of(path: str | Path) -> tuple[bytes, bool] | None:
    """What a file looks like from outside, and whether it has been so for a while; None when it cannot be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    stamp = _STAMP.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & _64_BITS)
    return stamp, time.time_ns() - changed >= SETTLED_NS


@contextmanager
def kept_looks() -> Iterator[Kept]:
    """The user's store, in the cache folder; one that keeps nothing where it cannot be used."""
    kept = Kept(default_cache_dir() / NAME)
    try:
        yield kept
    finally:
        kept.close()


class Kept:
    """The store at ``path``. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if path in _given_up:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(path)
            self._prepare(self._connection)
        except (sqlite3.Error, OSError, _OtherVersionError) as error:
            self._give_up(error)

    def known(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, str]]:
        """Stamps and texts of the records that are there, by their keys: at most a few hundred."""
        with self._lock:
            if self._connection is None:
                return {}
            try:
                asked = f"SELECT key, stamp, found FROM looks WHERE key IN ({','.join('?' * len(keys))})"
                return {key: (stamp, found) for key, stamp, found in self._connection.execute(asked, keys)}
            except sqlite3.Error as error:
                self._give_up(error)
                return {}

    def keep(self, records: Iterable[Record]) -> None:
        """Add records, in the place of those that have their keys: all of them or, when that fails, none."""
        with self._lock:
            if self._connection is None:
                return
            try:
                with self._connection as connection:
                    connection.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", records)
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Nothing is known or kept from now on."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the table, or empty it when it is of an older version, or too large."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise _OtherVersionError(f"of version {version}, newer than this program")
        numbers = ("page_count", "freelist_count", "page_size")
        pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in numbers)
        if version == VERSION and (pages - free) * size <= MAX_BYTES:
            return
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone() != (version,):
                return  # another process was first
            connection.execute("DROP TABLE IF EXISTS looks")
            connection.execute("CREATE TABLE looks (key BLOB PRIMARY KEY, stamp BLOB, found TEXT) WITHOUT ROWID")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _give_up(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        _given_up.add(self.path)
        fix = "free space there, delete it, or set FIDUCIAL_CACHE to a folder that can be written"
        log.warning("%s · not used: files are looked at anew in every run (%s) · %s", self.path, error, fix)


class _OtherVersionError(Exception):
    """A newer version of this program keeps the store."""


_given_up: set[Path] = set()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection
