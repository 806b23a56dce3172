"""Right and wrong, counted: for one class, one image or a set of objects.

The foreground, the change classes, are all but class 0. A pixel that changed, but into another class than predicted, is
one miss and one false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from changenet.segment.rates import rate

__all__ = ["IGNORED", "Counts", "change_counts", "class_counts"]

IGNORED = 255
"""Mask value of pixels that neither loss nor metrics look at."""


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives. Rates are None where there is nothing to divide by."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float | None:
        return rate(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return rate(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        return rate(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float | None:
        return rate(self.tp, self.tp + self.fp + self.fn)


def class_counts(confusion_CC: NDArray[np.int64]) -> list[Counts]:
    """One for each class."""
    tp, predicted, true = np.diag(confusion_CC), confusion_CC.sum(axis=0), confusion_CC.sum(axis=1)
    return [Counts(int(t), int(p - t), int(r - t)) for t, p, r in zip(tp, predicted, true, strict=True)]


def change_counts(confusion_CC: NDArray[np.int64]) -> Counts:
    """All change classes together; of two classes, that is class 1."""
    counts = class_counts(confusion_CC)[1:]
    return Counts(sum(c.tp for c in counts), sum(c.fp for c in counts), sum(c.fn for c in counts))
