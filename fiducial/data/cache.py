"""Where fetched and unpacked data lives: a folder that may be deleted whenever nothing runs.

::

    blobs/<sha256>       the bytes of every fetched object, once each
    trees/<sha256>/      fetched files and folders under their own names (hard links to the blobs)
    unpacked/<sha256>/   what an archive with these bytes unpacks to
    records/<id>.json    what is known about a source; the id says nothing about its secrets
    features/<id>/       what a frozen network makes of pictures (:mod:`fiducial.data.feature_store`)
    partial/, locks/     work in progress

Everything outside ``partial`` and ``features`` appears under its name in one step and is never changed afterwards, so
runs that share the folder (ranks, trials, colleagues) can read while others add.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

__all__ = ["Cache", "default_cache_dir", "digest"]

log = logging.getLogger("fiducial")


def default_cache_dir() -> Path:
    """``$FIDUCIAL_CACHE``, else ``fiducial`` in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``)."""
    if chosen := os.environ.get("FIDUCIAL_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fiducial"


def digest(value: str | Path) -> str:
    """SHA-256 of a text or of a file's bytes, in hex."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
    with value.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """The folder described on top of this module; ``root`` is made when first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold ``name`` against every other process and thread that uses this folder."""
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that fills %s", self.root)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def read(self, name: str) -> dict[str, Any]:
        """The record ``name``; empty if there is none or it cannot be read."""
        try:
            record = json.loads((self.root / "records" / f"{name}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Keep ``record`` (plain JSON data) under ``name``."""
        text = json.dumps(record, indent=1)
        target = self.root / "records" / f"{name}.json"
        self.publish(target, lambda part: part.write_text(text, "utf-8"), replace=True)

    def blob(self, sha256: str) -> Path:
        """Where the bytes with this digest are, if they are here."""
        return self.root / "blobs" / sha256

    def add_blob(self, part: Path) -> str:
        """Move a finished file in, or drop it if its bytes are here; returns its digest."""
        sha256 = digest(part)
        blob = self.blob(sha256)
        if blob.exists():
            part.unlink()
            return sha256
        blob.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o444)  # trees and other runs share these bytes
        os.replace(part, blob)
        return sha256

    def partial(self, name: str) -> Path:
        """A path to work at, with nothing at it yet. One per lock name: what a crash left there is removed."""
        path = self.root / "partial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(path)
        return path

    def publish(self, target: Path, make: Callable[[Path], object], *, replace: bool = False) -> Path:
        """``target``, made by ``make(part)`` at another path and renamed when complete; once, unless ``replace``."""
        name = f"{target.parent.name}-{target.name}"
        with self.lock(name):
            if target.exists() and not replace:
                return target
            part = self.partial(name)
            try:
                make(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
            finally:
                _remove(part)
        return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
