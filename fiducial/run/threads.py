"""How torch's threads wait for work. Imports nothing heavy: it must come before torch."""

from __future__ import annotations

import os

__all__ = ["yield_when_idle"]

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What says how OpenMP's threads wait, whichever runtime a torch comes with (libgomp on Linux, libomp elsewhere)."""
_SPINS = "1000"
"""Long enough for the gaps within a step, where waking a sleeper would cost a third of the speed of an idle machine."""


def yield_when_idle() -> None:
    """Let libgomp's threads sleep soon when there is nothing to do, unless the user has said how they wait.

    By default they spin for milliseconds: beside other programs each then waits for one that does not run, and training
    takes many times as long. The runtime reads this once, when torch loads it.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
