"""What an evaluator makes of all batches: one mask for each box, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mal.annotations import Annotations, Box, Selection
from mal.quality import Judgement

__all__ = ["Labelled", "Results"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """What was found for the box at ``place``.

    ``rle`` are COCO's run lengths; ``bounds`` the corners of the mask, None of an empty one; ``confidence`` the mean
    probability of its pixels. ``iou``, ``boundary`` and ``cluster`` need the true mask, ``quality`` does not.
    """

    place: int
    rle: Mapping[str, Any]
    mask_area: int
    bounds: tuple[int, int, int, int] | None
    confidence: float
    iou: float | None = None
    boundary: float | None = None
    cluster: float | None = None
    quality: Judgement | None = None
    classes_of_batch: tuple[int, ...] = ()


@dataclass(frozen=True)
class Results:
    """All masks, in the order of the annotations."""

    annotations: Annotations
    selection: Selection
    labelled: tuple[Labelled, ...]

    @property
    def measured(self) -> list[Labelled]:
        """Those with a true mask."""
        return [found for found in self.labelled if found.iou is not None]

    def box(self, found: Labelled) -> Box:
        return self.selection.boxes[found.place]

    def counts(self) -> dict[str, float]:
        """How many annotations there are, have a mask now, have an empty one, and have none."""
        return {
            "boxes": float(len(self.annotations.rows)),
            "labelled": float(len(self.labelled)),
            "empty": float(sum(not found.mask_area for found in self.labelled)),
            "left_out": float(len(self.selection.left_out)),
        }
