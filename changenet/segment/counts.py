"""Right and wrong, counted: for one class, one image or a set of objects; and the CSV of all images.

Change classes are all but class 0. A pixel that changed, but into another class than predicted, is one miss and one
false alarm.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from changenet.segment.objects import ObjectCounts

__all__ = ["IGNORED", "Counts", "ImageResult", "change_counts", "class_counts", "confusion", "write_image_csv"]

IGNORED = 255
"""Mask value of pixels that neither loss nor metrics look at."""


@dataclass(frozen=True)
class Counts:
    """True positives, false positives, false negatives. Rates are None where nothing is there to divide by."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float | None:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float | None:
        return _share(self.tp, self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class ImageResult:
    """One image: ``confusion`` int64 ``(C, C)``, rows truth and columns prediction, pixels; and its objects."""

    name: str
    confusion: NDArray[np.int64]
    objects: ObjectCounts | None = None

    @property
    def change(self) -> Counts:
        return change_counts(self.confusion)

    @property
    def num_wrong(self) -> int:
        return int(self.confusion.sum() - np.trace(self.confusion))


def confusion(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """How often each class (row) was called each class (column), int64 ``(C, C)``.

    Both masks hold class numbers and have one shape; pixels whose truth is :data:`IGNORED` are left out.
    Raises: ValueError when the shapes differ or a number is outside ``0 .. num_classes - 1``.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of {prediction.shape} and {truth.shape}")
    valid = truth != IGNORED
    pairs = truth[valid].astype(np.int64) * num_classes + prediction[valid]
    if max(truth[valid].max(initial=0), prediction[valid].max(initial=0)) >= num_classes:
        raise ValueError(f"class numbers must be below {num_classes}")
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def class_counts(confusion_CC: NDArray[np.int64]) -> list[Counts]:
    """One for each class."""
    tp, predicted, true = np.diag(confusion_CC), confusion_CC.sum(axis=0), confusion_CC.sum(axis=1)
    return [Counts(int(t), int(p - t), int(r - t)) for t, p, r in zip(tp, predicted, true, strict=True)]


def change_counts(confusion_CC: NDArray[np.int64]) -> Counts:
    """All change classes together; of two classes, that is class 1."""
    counts = class_counts(confusion_CC)[1:]
    return Counts(sum(c.tp for c in counts), sum(c.fp for c in counts), sum(c.fn for c in counts))


def write_image_csv(path: Path, results: Iterable[ImageResult]) -> None:
    """One line for each image: pixels counted, rates of the change, objects. Undefined rates are empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for result in results:
            row = _row(result)
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _row(result: ImageResult) -> dict[str, object]:
    change = result.change
    objects = asdict(result.objects) if result.objects else {}
    return {
        "name": result.name,
        "pixels": int(result.confusion.sum()),
        "changed_pixels": int(result.confusion[1:].sum()),
        "wrong_pixels": result.num_wrong,
        **asdict(change),
        **{rate: getattr(change, rate) for rate in ("precision", "recall", "f1", "iou")},
        **{f"objects_{name}": number for name, number in objects.items()},
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
