"""How well the contours of two masks agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["boundary_f"]

TOLERANCE = 0.02
"""Share of a box's diagonal that contours may lie apart, at least one pixel."""


def boundary_f(pred: NDArray[np.bool_], target: NDArray[Any], *, diagonal: float) -> float:
    """F-score of contour pixels that have one of the other mask near them (Martin et al. 2004; Perazzi et al. 2016).

    Both ``(H, W)``, of one object; ``diagonal``: of its box, in pixels. 1 where both masks are empty, 0 where one is.
    """
    from scipy.spatial import cKDTree

    target = target != 0
    if not pred.any() or not target.any():
        return float(not pred.any() and not target.any())
    near = max(1.0, TOLERANCE * diagonal)
    edges = [_outer_edge(mask) for mask in (pred, target)]
    shares = []
    for edge, other in (edges, edges[::-1]):
        tree = cKDTree(other, leafsize=32, compact_nodes=False, balanced_tree=False)
        apart, _ = tree.query(edge, distance_upper_bound=near + 1e-6)  # infinite beyond
        shares.append(float((apart <= near).mean()))
    precision, recall = shares
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _outer_edge(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows and columns ``(N, 2)`` of the pixels outside a mask with one of its pixels above, below or beside them."""
    padded = np.pad(mask, 1)
    grown = padded.copy()
    grown[1:] |= padded[:-1]
    grown[:-1] |= padded[1:]
    grown[:, 1:] |= padded[:, :-1]
    grown[:, :-1] |= padded[:, 1:]
    return np.argwhere(grown & ~padded)
