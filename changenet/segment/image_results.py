"""What the masks of single images came to, and the CSV of all of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from changenet.segment.counts import Counts, change_counts
from changenet.segment.objects import ObjectCounts

__all__ = ["ImageResult", "write_image_csv"]


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
