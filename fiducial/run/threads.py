"""How torch's threads wait for work. Imports nothing heavy: it must come before torch."""

from __future__ import annotations

import os

__all__ = ["yield_when_idle"]

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What says how OpenMP's threads wait, whichever runtime a torch comes with (libgomp on Linux, libomp elsewhere)."""


def yield_when_idle() -> None:
    """Let OpenMP's threads sleep between two pieces of work, unless the user has said how they wait.

    By default they spin: beside other programs each then waits for one that does not run, and training takes many times
    as long. The runtime reads this once, when torch loads it.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
