"""When a picture is of no class of the gallery: what evaluation can say about it, and the rule itself. No network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OpenSet", "is_known", "open_set"]

Numbers = NDArray[np.float64]


def is_known(nearest_Q: Any, rival_Q: Any, threshold: float | None, margin: float | None) -> Any:
    """Whether a picture is of the class of its nearest: within ``threshold``, and ``margin`` nearer than any other
    class (``rival``). Arrays or tensors of squared distances; bool of the same shape."""
    known_Q = nearest_Q == nearest_Q
    if threshold is not None:
        known_Q = known_Q & (nearest_Q <= threshold)
    if margin is not None:
        known_Q = known_Q & (rival_Q - nearest_Q >= margin)
    return known_Q


@dataclass(frozen=True)
class OpenSet:
    """How well a threshold tells pictures of the gallery's classes from strangers.

    ``known`` and ``strangers``: the distance of the nearest picture with a query's class in the gallery, and without
    it. ``true_accept_T``: share of queries that are accepted and right at each of ``thresholds``; ``false_accept_T``:
    share of strangers accepted. ``threshold`` and ``margin`` are proposed, None where nothing can be told.
    """

    known: Numbers
    strangers: Numbers
    thresholds: Numbers
    true_accept_T: Numbers
    false_accept_T: Numbers
    auroc: float
    threshold: float | None
    margin: float | None
    balanced_accuracy: float

    def plain(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return {
            "threshold": self.threshold,
            "margin": self.margin,
            "auroc": self.auroc,
            "balanced_accuracy": self.balanced_accuracy,
        }


def open_set(own_Q: Numbers, other_Q: Numbers) -> OpenSet:
    """Look at each query twice: with its class in the gallery, and without.

    ``own``: squared distance of the nearest picture of the query's class; ``other``: of any other class. Queries that
    have not both are left out. The threshold is the one with the highest balanced accuracy, the mean of the share of
    queries accepted and right and that of strangers refused; of equal ones the middle. The margin is that which best
    tells right answers from wrong ones in the same way; 0 where none is wrong.
    """
    both = np.isfinite(own_Q) & np.isfinite(other_Q)
    own, other = np.asarray(own_Q, float)[both], np.asarray(other_Q, float)[both]
    nothing = np.empty(0)
    if not len(own):
        return OpenSet(nothing, nothing, nothing, nothing, nothing, float("nan"), None, None, float("nan"))
    known, right = np.minimum(own, other), own < other
    thresholds = _between(np.concatenate((known, other)))
    true_accept = _share_below(known[right], thresholds) * right.mean()
    false_accept = _share_below(other, thresholds)
    balanced = (true_accept + 1 - false_accept) / 2
    best = _middle_best(balanced)
    gap = np.abs(other - own)
    margin = 0.0
    if not right.all() and right.any():
        margins = _between(gap)
        kept, refused = 1 - _share_below(gap[right], margins), _share_below(gap[~right], margins)
        margin = float(margins[_middle_best((kept + refused) / 2)])
    return OpenSet(
        known=known,
        strangers=other,
        thresholds=thresholds,
        true_accept_T=true_accept,
        false_accept_T=false_accept,
        auroc=_auroc(known, other),
        threshold=float(thresholds[best]),
        margin=margin,
        balanced_accuracy=float(balanced[best]),
    )


def _between(values: Numbers) -> Numbers:
    """0, the middles between neighbouring values, and the largest."""
    ordered = np.unique(values)
    return np.concatenate(([0.0], (ordered[:-1] + ordered[1:]) / 2, ordered[-1:]))


def _share_below(values: Numbers, limits_T: Numbers) -> Numbers:
    """The share of values that are at most each limit; 0 of none."""
    return np.searchsorted(np.sort(values), limits_T, side="right") / max(1, len(values))


def _middle_best(score_T: Numbers) -> int:
    best = np.flatnonzero(score_T >= score_T.max() - 1e-12)
    return int(best[len(best) // 2])


def _auroc(known: Numbers, strangers: Numbers) -> float:
    """The chance that a picture of the gallery is nearer to it than a stranger; half of it where both are as near."""
    ordered = np.sort(strangers)
    nearer = len(ordered) - np.searchsorted(ordered, known, side="right")
    as_near = np.searchsorted(ordered, known, side="right") - np.searchsorted(ordered, known, side="left")
    return float((nearer + 0.5 * as_near).mean() / len(ordered))
