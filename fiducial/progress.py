"""Long work says how far it is: a line every ten seconds, none for what is done sooner. Imports nothing heavy."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

__all__ = ["LINE_EVERY_S", "Pace", "clock", "followed"]

LINE_EVERY_S = 10.0
"""Seconds between two lines."""
_Item = TypeVar("_Item")
_log = logging.getLogger("fiducial")


class Pace:
    """When a line is due, and what it says of the speed. ``total`` 0 where nobody knows how much there is."""

    def __init__(self, total: float = 0) -> None:
        self.total, self.done = total, 0.0
        self.start = self.told = time.monotonic()

    def step(self, amount: float = 1) -> bool:
        """Count what was done; whether a line is due, which then counts as printed."""
        self.done += amount
        now = time.monotonic()
        if now - self.told < LINE_EVERY_S:
            return False
        self.told = now
        return True

    @property
    def rate(self) -> float:
        """What is done in a second."""
        return self.done / max(time.monotonic() - self.start, 1e-9)

    @property
    def left(self) -> str:
        """The time that the rest takes, as a clock shows it."""
        return clock((self.total - self.done) / max(self.rate, 1e-9)) if self.total else "unknown"


def followed(items: Iterable[_Item], what: str, *, total: int) -> Iterator[_Item]:
    """The items, with a line every ten seconds: ``what 120/3000, 12.0/s, left 0:04:00``."""
    pace = Pace(total)
    for item in items:
        yield item
        if pace.step():
            _log.info("%s %d/%d, %.1f/s, left %s", what, pace.done, total, pace.rate, pace.left)


def clock(seconds: float) -> str:
    """``0:04:00``."""
    return str(timedelta(seconds=round(seconds)))
