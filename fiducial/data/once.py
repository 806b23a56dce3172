"""Lists of a data set, read once in a run: the look before an action and the action itself want the same. No torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = ["once", "one_reading"]

_Read = TypeVar("_Read")
_read: ContextVar[dict[Hashable, Any] | None] = ContextVar("read", default=None)


@contextmanager
def one_reading() -> Iterator[None]:
    """Within, :func:`once` remembers."""
    before = _read.set({})
    try:
        yield
    finally:
        _read.reset(before)


def once(key: Hashable, read: Callable[[], _Read]) -> _Read:
    """What ``read`` returns, or returned for this key within the same :func:`one_reading`; outside, it always reads.

    ``key``: all that the result depends on, beside files. Nobody may change the result.
    """
    known = _read.get()
    if known is None:
        return read()
    if key not in known:
        known[key] = read()
    found: _Read = known[key]
    return found
