"""Keeping what was made lately, within a bound of memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

__all__ = ["ByteLRU"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteLRU(Generic[Key, Value]):
    """Values by key, the least recently used dropped first. Threads may share it; every process starts empty.

    ``max_bytes`` bounds what is kept (0 keeps nothing). A value larger than that is not kept, and displaces no other;
    with ``keep_latest`` it is, alone, until the next one comes. ``num_bytes`` is what is kept, ``hits`` and ``misses``
    count calls of :meth:`get`, all in this process.

    Raises: ValueError if ``max_bytes`` is negative.
    """

    def __init__(self, max_bytes: int, *, keep_latest: bool = False) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {max_bytes}")
        self.max_bytes, self.keep_latest = max_bytes, keep_latest
        self._clear()

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "keep_latest": self.keep_latest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def get(self, key: Key) -> Value | None:
        """The value kept for ``key``, which becomes the most recently used; None when there is none."""
        self._start_empty_when_forked()
        with self._lock:
            if key not in self._kept:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Key, value: Value, num_bytes: int) -> None:
        """Keep ``value``, which takes ``num_bytes``, as the most recently used; what is kept for ``key`` stays."""
        self._start_empty_when_forked()
        may_be_alone = self.keep_latest and self.max_bytes > 0
        with self._lock:
            if key in self._kept or (num_bytes > self.max_bytes and not may_be_alone):
                return
            self._kept[key] = value, num_bytes
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes and not (may_be_alone and len(self._kept) == 1):
                self.num_bytes -= self._kept.popitem(last=False)[1][1]

    def _clear(self) -> None:
        self.num_bytes = self.hits = self.misses = 0
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _start_empty_when_forked(self) -> None:
        if self._process != os.getpid():  # forked, perhaps in the middle of a change
            self._clear()
