"""From the probabilities of a crop to a mask in the picture, and to COCO's run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mal.crop import Crop

__all__ = ["PlacedMask", "box_area", "mask_prob", "place", "threshold_of"]


def mask_prob(logits: Tensor, boxmask: Tensor) -> Tensor:
    """Logits ``(B, 1, h, w)`` as probabilities at the size of the box mask, nothing outside it: ``(B, 1, S, S)``.

    ``boxmask``: 0 and 1, ``(B, 1, S, S)``.
    """
    resized = F.interpolate(logits, size=boxmask.shape[-2:], mode="bilinear", align_corners=False)
    return resized.sigmoid() * boxmask


def box_area(box: Sequence[float]) -> float:
    """Of corners ``(x0, y0, x1, y1)``."""
    return (box[2] - box[0]) * (box[3] - box[1])


def threshold_of(thresholds: Sequence[float], bucket: int) -> float:
    """Of one threshold for all sizes, or three for small, medium and large boxes."""
    return thresholds[bucket] if len(thresholds) > 1 else thresholds[0]


@dataclass(frozen=True)
class PlacedMask:
    """A mask that is all within one window of a picture: ``mask`` bool ``(h, w)``, its corner at ``(x, y)``."""

    mask: NDArray[np.bool_]
    x: int
    y: int
    width: int
    height: int

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())

    def full(self) -> NDArray[np.bool_]:
        """The mask of the whole picture, ``(height, width)``."""
        whole = np.zeros((self.height, self.width), bool)
        whole[self.y : self.y + self.mask.shape[0], self.x : self.x + self.mask.shape[1]] = self.mask
        return whole

    def bounds(self) -> tuple[int, int, int, int] | None:
        """The corners of the tight box, its last row and column included in the size; None of an empty mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if not len(rows):
            return None
        return (
            int(self.x + columns[0]),
            int(self.y + rows[0]),
            int(self.x + columns[-1] + 1),
            int(self.y + rows[-1] + 1),
        )

    def within(self, box: Sequence[float]) -> PlacedMask:
        """The part of it in a box ``(x0, y0, x1, y1)``, whose last row and column are part of it."""
        x0, y0, x1, y1 = (int(corner) for corner in box)
        rows = np.arange(self.y, self.y + self.mask.shape[0])
        columns = np.arange(self.x, self.x + self.mask.shape[1])
        inside = np.outer((rows >= y0) & (rows <= y1), (columns >= x0) & (columns <= x1))
        return replace(self, mask=self.mask & inside)

    def window_of(self, other: NDArray[Any]) -> NDArray[Any]:
        """What a mask of the whole picture holds in the window of this one."""
        return other[self.y : self.y + self.mask.shape[0], self.x : self.x + self.mask.shape[1]]

    def iou(self, other: NDArray[Any]) -> float:
        """Intersection over union with a mask of the whole picture: ``|a and b| / (|a or b| + 1e-6)``."""
        window = self.window_of(other) != 0
        both = int(np.count_nonzero(self.mask & window))
        return both / (self.area + int(np.count_nonzero(other)) - both + 1e-6)

    def runs(self) -> list[int]:
        """COCO's run lengths of the whole picture, column by column, beginning with background.

        Made from the window alone: the picture around it is never built.
        """
        flat = np.zeros(self.mask.shape[1] * self.height + 2, bool)  # the window's columns at full height, and an end
        columns = flat[1:-1].reshape(self.mask.shape[1], self.height)
        columns[:, self.y : self.y + self.mask.shape[0]] = self.mask.T
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + self.x * self.height
        total = self.width * self.height
        runs = np.diff(np.concatenate([[0], changes, [total]])).astype(int).tolist()
        return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs

    def rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths: ``size`` ``[height, width]`` and ``counts`` as text."""
        from pycocotools import mask as coco_mask

        size = [self.height, self.width]
        found = coco_mask.frPyObjects({"size": size, "counts": self.runs()}, self.height, self.width)
        return {"size": size, "counts": found["counts"].decode("ascii")}


def place(prob_SS: Tensor, crop: Crop, *, width: int, height: int, threshold: float) -> PlacedMask:
    """The mask of one object: its crop's probabilities ``(S, S)`` at the crop's own size, cut to the picture.

    A pixel belongs to it where its probability is above ``threshold``.
    """
    resized = F.interpolate(prob_SS[None, None].float(), (crop.height, crop.width), mode="bilinear")[0, 0]
    inside = crop.inside(width, height)
    window = resized[inside.y0 - crop.y0 : inside.y1 - crop.y0, inside.x0 - crop.x0 : inside.x1 - crop.x0]
    mask = torch.gt(window, threshold).cpu().numpy()
    return PlacedMask(mask, inside.x0, inside.y0, width, height)
