"""How far a mask can be trusted, told without the true one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.annotations import Box, Picture
from mal.crop import Corners

__all__ = ["Calibration", "Judgement", "calibration", "jittered", "rle_iou"]

JITTER = 0.05
"""Share of its sides by which a box is enlarged, on each side, to see whether the mask stays."""
_BINS = 5


@dataclass(frozen=True, slots=True)
class Judgement:
    """All in 0..1. ``box_fit``: IoU of the mask's tight box and the box asked for. ``agreement``: IoU of the masks of
    student and teacher. ``stability``: IoU with the mask of a box a little larger. None: not looked at."""

    box_fit: float
    agreement: float | None = None
    stability: float | None = None

    @property
    def score(self) -> float:
        """The geometric mean of what is known: low as soon as one of them is."""
        known = [part for part in (self.box_fit, self.agreement, self.stability) if part is not None]
        return math.prod(known) ** (1 / len(known))


def box_fit(box: Box, bounds: tuple[int, int, int, int] | None) -> float:
    """IoU of a box and the corners of a mask; 0 for an empty mask."""
    if bounds is None:
        return 0.0
    x0, y0, x1, y1 = box.corners
    width = max(0.0, min(x1, bounds[2]) - max(x0, bounds[0]))
    height = max(0.0, min(y1, bounds[3]) - max(y0, bounds[1]))
    both = width * height
    return both / (box.area + (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]) - both)


def rle_iou(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """IoU of two masks as COCO's run lengths; two empty ones agree."""
    from pycocotools import mask as coco_mask

    if coco_mask.area([dict(one), dict(other)]).sum() == 0:
        return 1.0
    return float(coco_mask.iou([dict(one)], [dict(other)], [0])[0, 0])


def jittered(box: Box, picture: Picture) -> Box:
    """The same box, a little larger, within its picture."""
    x0, y0, x1, y1 = box.corners
    x, y = JITTER * (x1 - x0), JITTER * (y1 - y0)
    corners: Corners = (
        max(0.0, x0 - x),
        max(0.0, y0 - y),
        min(float(picture.width), x1 + x),
        min(float(picture.height), y1 + y),
    )
    return Box(box.row, box.id, box.picture, box.category, corners, box.crowd, box.prompt)


@dataclass(frozen=True)
class Calibration:
    """Masks of a range of scores: how many, and how well they really meet the true ones."""

    low: float
    high: float
    count: int
    mean_iou: float
    """NaN where there are none."""


def calibration(scores: Sequence[float], ious: Sequence[float]) -> list[Calibration]:
    """The score against the true IoU, in ranges of equal width."""
    rows = []
    for place in range(_BINS):
        low, high = place / _BINS, (place + 1) / _BINS
        top = high if place < _BINS - 1 else math.inf
        inside = [iou for score, iou in zip(scores, ious, strict=True) if low <= score < top]
        mean = sum(inside) / len(inside) if inside else math.nan
        rows.append(Calibration(low, high, len(inside), mean))
    return rows
