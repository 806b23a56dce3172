"""How often good pairs and defects are drawn in training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fiducial.errors import DatasetError, Problem

__all__ = ["fpratio_weights"]

_log = logging.getLogger(__name__)


def fpratio_weights(labels: Sequence[int] | NDArray[np.integer], ratio: float) -> NDArray[np.float64]:
    """Sampling weights ``(n,)``: 1 for PASS (label 0), ``ratio * num_pass / num_fail`` for defects (any other label).

    Defects then are ``ratio / (1 + ratio)`` of the draws. Without a PASS row all weights are 1, with a warning.

    Raises: DatasetError without a defect row.
    """
    is_fail = np.asarray(labels) != 0
    num_fail = int(is_fail.sum())
    num_pass = len(is_fail) - num_fail
    if num_fail == 0:
        raise DatasetError(
            "training CSV",
            f"{num_pass} rows, all PASS",
            "add rows of defects: there is nothing to learn from PASS alone",
        )
    if num_pass == 0:
        problem = Problem("training CSV", f"{num_fail} rows, none PASS", "add rows labelled PASS", level="warning")
        _log.warning("%s; rows are drawn evenly", problem)
        return np.ones(num_fail)
    return np.where(is_fail, ratio * num_pass / num_fail, 1.0)
