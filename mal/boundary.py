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
    from scipy.ndimage import binary_dilation, distance_transform_edt

    target = target != 0
    if not pred.any() or not target.any():
        return float(not pred.any() and not target.any())
    near = max(1.0, TOLERANCE * diagonal)
    edges = [np.pad(mask, 1) ^ binary_dilation(np.pad(mask, 1)) for mask in (pred, target)]
    shares = []
    for edge, other in (edges, edges[::-1]):
        shares.append(float((distance_transform_edt(~other)[edge] <= near).mean()))
    precision, recall = shares
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)
