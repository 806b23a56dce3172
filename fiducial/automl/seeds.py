"""Seeds that follow from others."""

from __future__ import annotations

import numpy as np

__all__ = ["derived"]


def derived(seed: int, number: int) -> int:
    """A seed for the trial of a number, 0 to 2**31 - 1, unlike those of other numbers and of other seeds."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) % 2**31
