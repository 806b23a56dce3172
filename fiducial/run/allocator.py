"""What becomes of memory that torch frees on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers that glibc's ``mallopt`` has for what it sets."""
_CHOSEN = ("MALLOC_", "GLIBC_TUNABLES")
"""How names of variables begin by which a user says how glibc allocates."""


def keep_freed_memory() -> bool:
    """Let glibc give freed memory to what is allocated next, unless the user has said how it allocates.

    By default it takes every large block from the system and hands it back at once, and the system clears each page
    anew: up to a quarter of the time of a step. Returns whether it was set (not where the C library is another).
    """
    if sys.platform != "linux" or any(name.startswith(_CHOSEN) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
