"""Mean intersection over union of objects, by class and by size."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mal.model import LIMITS

__all__ = ["SIZES", "ClassIou"]

SIZES = ("small", "medium", "large")


class ClassIou:
    """The mean over classes of the mean IoU of their objects, of all objects and of those of each size.

    ``num_classes``: classes are 0-based places in a data set's list; those without an object do not count.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._sum = {name: np.zeros(num_classes) for name in ("", *SIZES)}
        self._count = {name: np.zeros(num_classes) for name in ("", *SIZES)}

    def add(self, category: int, iou: float, area: float, *, sized_as: Iterable[int] | None = None) -> None:
        """One object; ``area`` is its box's, in pixels.

        ``sized_as``: TAO-compat: the classes that its size's numbers count it for, where TAO takes every class in the
        batch. A clean design has its own class alone.
        """
        size = SIZES[int(np.searchsorted(LIMITS, area))]
        places = [("", category), *((size, other) for other in ([category] if sized_as is None else sized_as))]
        for name, place in places:
            self._sum[name][place] += iou
            self._count[name][place] += 1

    def mean(self, name: str = "") -> float:
        """Over all sizes, or one of :data:`SIZES`; NaN where there is no object."""
        count = self._count[name]
        there = count > 0
        if not there.any():
            return float("nan")
        return float((self._sum[name][there] / (1e-6 + count[there])).mean())

    def kpis(self) -> dict[str, float]:
        """``mIoU`` and ``mIoU_small``, ``mIoU_medium``, ``mIoU_large``."""
        return {"mIoU": self.mean(), **{f"mIoU_{name}": self.mean(name) for name in SIZES}}

    def by_class(self) -> dict[int, tuple[int, float]]:
        """The number of objects and their mean IoU of every class that has some."""
        found = {}
        for place in np.flatnonzero(self._count[""]):
            count = int(self._count[""][place])
            found[int(place)] = (count, float(self._sum[""][place] / count))
        return found
