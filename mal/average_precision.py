"""COCO's twelve numbers of masks, by its own code, some pictures at a time.

pycocotools keeps 10 kB of every object until the end. What its sums need is told here in a hundred bytes: how well an
object is ranked, and for each size and each IoU whether its mask met a true one, and whether it counts.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mal.results import Labelled, Results
from mal.segmentation import numbers_of

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

__all__ = ["average_precision"]

_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")
_AT_ONCE = 512
"""Objects, about, that pycocotools compares at a time."""


@dataclass(frozen=True)
class _Matched:
    """What became of D masks: A sizes of objects, T IoUs that are asked for.

    ``rank_D``: how many masks of its class and picture are more certain.
    """

    class_D: NDArray[np.int32]
    rank_D: NDArray[np.int32]
    score_D: NDArray[np.float64]
    matched_ATD: NDArray[np.bool_]
    ignored_ATD: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[_Matched]) -> _Matched:
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts], -1) for each in fields(cls)))


def average_precision(results: Results) -> dict[str, float]:
    """AP and AR of the masks that have a true one; at least one does. NaN where a size does not occur.

    A mask is ranked by the score of its box where the annotation has one, else by its mean probability.
    """
    from pycocotools.cocoeval import Params

    num_true_KA = np.zeros((len(results.annotations.class_names), len(Params(iouType="segm").areaRng)), np.int64)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        matched = _Matched.joined([_kept(_compared(results, some), num_true_KA) for some in _some_pictures(results)])
        stats = _summed_up(matched, num_true_KA)
    return {f"{name}_segm": float("nan") if v < 0 else float(v) for name, v in zip(_COCO, stats, strict=True)}


def _some_pictures(results: Results) -> Iterator[list[Labelled]]:
    """The masks of some pictures after the other, all of a picture together, in the order of the file."""
    measured = results.measured
    pictures = np.array([results.box(found).picture for found in measured])
    order = np.argsort(pictures, kind="stable")
    ends = np.flatnonzero(np.diff(pictures[order], append=-1)) + 1  # of pictures
    start = 0
    while start < len(order):
        end = int(ends[np.searchsorted(ends, min(start + _AT_ONCE, len(order)))])
        yield [measured[place] for place in order[start:end]]
        start = end


def _compared(results: Results, some: Sequence[Labelled]) -> COCOeval:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = results.annotations
    truth: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for number, found in enumerate(some, 1):
        box = results.box(found)
        common = {"image_id": box.picture, "category_id": box.category}
        row = annotations.rows[box.row]
        true = annotations.rle(box)
        truth.append({**common, "id": number, "segmentation": true, "area": _area(true), "iscrowd": int(box.crowd)})
        scores = numbers_of([row.get("score", found.confidence)]) or [found.confidence]
        detections.append({**common, "segmentation": dict(found.rle), "score": scores[0]})
    gold = COCO()
    gold.dataset = {
        "images": [
            {"id": place, "width": annotations.pictures[place].width, "height": annotations.pictures[place].height}
            for place in sorted({row["image_id"] for row in truth})
        ],
        "annotations": truth,
        "categories": [{"id": place} for place in sorted({row["category_id"] for row in truth})],
    }
    gold.createIndex()
    judged = COCOeval(gold, gold.loadRes(detections), "segm")
    judged.evaluate()
    return judged


def _kept(judged: COCOeval, num_true_KA: NDArray[np.int64]) -> _Matched:
    """The masks of some pictures; the true ones that count are added to those of each class and size."""
    params: Any = judged.params
    sizes, pictures = len(params.areaRng), len(params.imgIds)
    parts = []
    for number, place in enumerate(params.catIds):
        of_class = judged.evalImgs[number * sizes * pictures : (number + 1) * sizes * pictures]
        for picture in range(pictures):
            by_size = of_class[picture::pictures]
            if by_size[0] is None:  # no object of this class
                continue
            num_true_KA[place] += [np.count_nonzero(each["gtIgnore"] == 0) for each in by_size]
            score_D = np.array(by_size[0]["dtScores"], np.float64)
            rank_D = np.arange(len(score_D), dtype=np.int32)
            matched, ignored = (np.array([each[name] for each in by_size]) != 0 for name in ("dtMatches", "dtIgnore"))
            parts.append(_Matched(np.full_like(rank_D, place), rank_D, score_D, matched, ignored))
    return _Matched.joined(parts)


def _summed_up(matched: _Matched, num_true_KA: NDArray[np.int64]) -> NDArray[np.float64]:
    """The twelve numbers. pycocotools sums up one class as if all its masks lay in one picture."""
    from pycocotools.cocoeval import COCOeval

    whole: Any = COCOeval(iouType="segm")
    by_class = []
    for place, num_true_A in enumerate(num_true_KA):
        of_class = matched.class_D == place
        each = [_of_class(matched, of_class & (matched.rank_D < most), num_true_A) for most in whole.params.maxDets]
        by_class.append({name: np.concatenate([part[name] for part in each], -1) for name in ("precision", "recall")})
    for name in ("precision", "recall"):  # (T, R, K, A, M) and (T, K, A, M)
        whole.eval[name] = np.concatenate([part[name] for part in by_class], axis=-3)
    whole.summarize()
    stats: NDArray[np.float64] = whole.stats
    return stats


def _of_class(matched: _Matched, chosen_D: NDArray[np.bool_], num_true_A: NDArray[np.int64]) -> dict[str, Any]:
    """Precision ``(T, R, 1, A, 1)`` and recall ``(T, 1, A, 1)`` of a class; -1 where no true mask counts."""
    from pycocotools.cocoeval import COCOeval

    summed: Any = COCOeval(iouType="segm")
    params = summed.params
    params.imgIds, params.catIds, params.maxDets = [0], [0], [len(chosen_D)]
    summed._paramsEval = params
    score_D = matched.score_D[chosen_D]
    summed.evalImgs = [
        {
            "dtScores": score_D,
            "dtMatches": matched.matched_ATD[size][:, chosen_D],
            "dtIgnore": matched.ignored_ATD[size][:, chosen_D],
            "gtIgnore": np.zeros(num_true, np.uint8),
        }
        for size, num_true in enumerate(num_true_A)
    ]
    summed.accumulate()
    found: dict[str, Any] = summed.eval
    return found


def _area(rle: dict[str, Any]) -> float:
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(rle))
