"""The learning rate: a linear warm-up, then half a cosine (or several) down to a floor."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["CosineSchedule", "peak_lr"]


def peak_lr(lr: float, num_devices: int, batch_size: int) -> float:
    """The highest rate: a spec's ``train.lr`` is per sample. Nodes and accumulation do not count, as in TAO."""
    return lr * num_devices * batch_size


@dataclass(frozen=True)
class CosineSchedule:
    """The rate at a place in training, counted in epochs.

    TAO-compat: a rate is set after the step that it was computed for, so the first update of a training has the whole
    peak and every later one that of the place before. A clean design would set it before.
    """

    peak: float
    floor: float
    num_epochs: int
    warmup_epochs: int = 1
    num_wave: float = 1.0

    def at(self, epochs: float) -> float:
        """The rate after so many epochs, a fraction included. Constant where the warm-up is the whole training."""
        if epochs < self.warmup_epochs:
            return self.peak * epochs / self.warmup_epochs
        rest = self.num_epochs - self.warmup_epochs
        if rest <= 0:
            return self.peak
        turn = math.cos(math.pi * self.num_wave * (epochs - self.warmup_epochs) / rest)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + turn)
