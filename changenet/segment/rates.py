"""One number divided by another, and the rule for 0 / 0 (no such class, object or prediction).

What people read, ``evaluate.csv`` and the report, leaves it empty: None. What is monitored and compared, the KPIs of
logs, status.json and metrics.json, says 0, as TAO's do; so do means over classes, which would have no value otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPSILON", "as_kpi", "kpi_rate", "rate"]

EPSILON = float(np.finfo(np.float32).eps)
"""Added by TAO to every denominator."""


def rate(part: int, whole: int) -> float | None:
    """``part / whole``; None where there is nothing to divide by."""
    return part / whole if whole else None


def as_kpi(known: float | None) -> float:
    """A :func:`rate` among the KPIs: 0 where there is none."""
    return 0.0 if known is None else known


def kpi_rate(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """``part / whole`` of every class, to TAO's last digits: 0 where there is nothing to divide by."""
    quotient: NDArray[np.float64] = part / (whole + EPSILON)
    return quotient
