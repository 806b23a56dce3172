"""The learning rate of an epoch: warm-up, then steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["warmup_steps_factor"]


def warmup_steps_factor(
    epoch: int,
    *,
    steps: Sequence[int],
    gamma: float,
    warmup_factor: float,
    warmup_iters: int,
    method: Literal["linear", "constant"],
) -> float:
    """What the base rate is multiplied by in an epoch, counted from 0.

    ``gamma`` for each of ``steps`` that has come. In the first ``warmup_iters`` epochs also ``warmup_factor``, with
    ``linear`` on the straight line from there to 1.
    """
    factor = gamma ** sum(step <= epoch for step in steps)
    if epoch >= warmup_iters:
        return factor
    if method == "constant":
        return factor * warmup_factor
    done = epoch / warmup_iters
    return factor * (warmup_factor * (1 - done) + done)
