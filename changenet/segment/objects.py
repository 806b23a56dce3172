"""Changes as objects: which ones were found, missed or invented, beside how many pixels were right.

An object is a connected component of the foreground: changed pixels that touch each other by a side or a corner
(8-connected).

*Matched*: a predicted and a true object of IoU >= 0.5, each used once (the criterion of the SpaceNet building
challenges; above 0.5 at most one partner is possible: Kirillov et al. 2019, Panoptic Segmentation). The rest is
*missed* or *false*. Beside this strict count stands a lenient one, for people who only need to be sent to the right
place: *touched* are true objects of which at least one pixel was predicted, *stray* predicted ones that touch no true
object.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from changenet.segment.counts import Counts

__all__ = ["MIN_IOU", "ObjectCounts", "connected_components", "match_objects"]

MIN_IOU = 0.5
"""Of a predicted and a true object, to be the same one."""


@dataclass(frozen=True)
class ObjectCounts:
    """Objects of one image, or, added up, of many. True ones: ``matched + missed``."""

    matched: int = 0
    missed: int = 0
    false: int = 0
    touched: int = 0
    stray: int = 0

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        return ObjectCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def num_true(self) -> int:
        return self.matched + self.missed

    @property
    def rates(self) -> Counts:
        """Precision, recall and F1 of the strict count."""
        return Counts(self.matched, self.false, self.missed)


def connected_components(foreground_HW: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """The component of each foreground pixel, 1 .. n and 0 for background, int32 ``(H, W)``; and n.

    Numbered from the top row down.
    """
    from scipy import ndimage

    label_HW, num = ndimage.label(foreground_HW, structure=np.ones((3, 3)), output=np.int32)
    return label_HW, int(num)


def match_objects(
    predicted_HW: NDArray[np.bool_],
    true_HW: NDArray[np.bool_],
    *,
    ignored_HW: NDArray[np.bool_] | None = None,
    min_iou: float = MIN_IOU,
    min_area: int = 0,
) -> ObjectCounts:
    """Compare the objects of two foreground masks ``(H, W)``.

    Pixels of ``ignored_HW`` count as unchanged in both. Objects below ``min_area`` pixels are neither missed nor false;
    a small prediction may still find a larger object, and one that matches a small true object is ignored with it.
    Pairs are taken from the highest IoU down. Raises: ValueError unless the shapes agree and ``0 < min_iou <= 1``.
    """
    if predicted_HW.shape != true_HW.shape:
        raise ValueError(f"masks of {predicted_HW.shape} and {true_HW.shape}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must be in (0, 1], got {min_iou}")
    if ignored_HW is not None:
        predicted_HW, true_HW = predicted_HW & ~ignored_HW, true_HW & ~ignored_HW
    predicted, num_predicted = connected_components(predicted_HW)
    true, num_true = connected_components(true_HW)
    area_predicted, area_true = np.bincount(predicted.ravel()), np.bincount(true.ravel())
    pair_P2, shared_P = _overlaps(true, predicted)
    iou_P = shared_P / (area_true[pair_P2[:, 0]] + area_predicted[pair_P2[:, 1]] - shared_P)

    partner_of_true, partner_of_predicted = np.zeros(num_true + 1, int), np.zeros(num_predicted + 1, int)
    good = iou_P >= min_iou
    for t, p in pair_P2[good][np.argsort(-iou_P[good], kind="stable")]:
        if not partner_of_true[t] and not partner_of_predicted[p]:
            partner_of_true[t], partner_of_predicted[p] = p, t

    counted_true, counted_predicted = area_true[1:] >= min_area, area_predicted[1:] >= min_area
    met_true, met_predicted = np.zeros(num_true + 1, bool), np.zeros(num_predicted + 1, bool)
    met_true[pair_P2[:, 0]], met_predicted[pair_P2[:, 1]] = True, True
    return ObjectCounts(
        matched=int((counted_true & (partner_of_true[1:] > 0)).sum()),
        missed=int((counted_true & (partner_of_true[1:] == 0)).sum()),
        false=int((counted_predicted & (partner_of_predicted[1:] == 0)).sum()),
        touched=int((counted_true & met_true[1:]).sum()),
        stray=int((counted_predicted & ~met_predicted[1:]).sum()),
    )


def _overlaps(a_HW: NDArray[np.int32], b_HW: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (object of a, object of b) that share pixels, int64 ``(P, 2)``, and how many, ``(P,)``."""
    both = (a_HW > 0) & (b_HW > 0)
    base = int(b_HW.max(initial=0)) + 1
    pairs, shared = np.unique(a_HW[both].astype(np.int64) * base + b_HW[both], return_counts=True)
    return np.stack([pairs // base, pairs % base], axis=1), shared
