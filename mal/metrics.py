"""Mean intersection over union of objects, by class and by size."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from mal.model import LIMITS
from mal.results import Results
from mal.segmentation import numbers_of

__all__ = ["SIZES", "ClassIou", "average_precision"]

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


_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")


def average_precision(results: Results) -> dict[str, float]:
    """COCO's twelve numbers of the masks, by its own code; NaN where a size does not occur.

    A mask is ranked by the score of its box where the annotation has one, else by its mean probability.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, truth, detections = results.annotations, [], []
    for number, found in enumerate(results.measured, 1):
        box = results.box(found)
        common = {"image_id": box.picture + 1, "category_id": box.category + 1}
        row = annotations.rows[box.row]
        true = annotations.rle(box)
        truth.append({**common, "id": number, "segmentation": true, "area": _area(true), "iscrowd": int(box.crowd)})
        scores = numbers_of([row.get("score", found.confidence)]) or [found.confidence]
        detections.append({**common, "segmentation": dict(found.rle), "score": scores[0]})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        gold = COCO()
        gold.dataset = {
            "images": [{"id": i + 1, "width": p.width, "height": p.height} for i, p in enumerate(annotations.pictures)],
            "annotations": truth,
            "categories": [{"id": i + 1} for i in range(len(annotations.class_names))],
        }
        gold.createIndex()
        judged = COCOeval(gold, gold.loadRes(detections), "segm")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {f"{name}_segm": float("nan") if v < 0 else float(v) for name, v in zip(_COCO, judged.stats, strict=True)}


def _area(rle: dict[str, Any]) -> float:
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(rle))
