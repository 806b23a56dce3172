"""Metrics of segment, all from confusion matrices: ``[true class, predicted class]`` counts of pixels.

Dims: B images, K classes, H and W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from changenet.segment.metric_names import PER_CLASS

__all__ = ["EPSILON", "class_order", "confusion", "per_class", "summary"]

EPSILON = float(np.finfo(np.float32).eps)
"""Added to every denominator, as in TAO: a class that is nowhere has 0, not NaN."""

Counts = NDArray[np.int64]
_MEANS = {"miou": "iou", "mf1": "F1", "mprecision": "precision", "mrecall": "recall"}


def confusion(prediction_BHW: Tensor, label_BHW: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix of every image, int64 ``(B, K, K)``, on the device of the inputs.

    Both are class numbers of any integer dtype. Pixels whose label is not one of the classes (255) are left out.
    Raises: ValueError when the shapes differ.
    """
    if prediction_BHW.shape != label_BHW.shape:
        raise ValueError(f"masks of {tuple(prediction_BHW.shape)} and {tuple(label_BHW.shape)}")
    size = num_classes * num_classes
    batch = torch.arange(len(label_BHW), device=label_BHW.device).view(-1, 1, 1)
    label_BHW, cell_BHW = label_BHW.long(), prediction_BHW.long()
    counts_BHW = (label_BHW >= 0) & (label_BHW < num_classes)
    cell_BHW = (batch * size + label_BHW * num_classes + cell_BHW)[counts_BHW]
    return torch.bincount(cell_BHW, minlength=len(label_BHW) * size).view(-1, num_classes, num_classes)


def per_class(matrix_KK: Counts) -> dict[str, NDArray[np.float64]]:
    """``iou``, ``F1``, ``precision`` and ``recall`` of every class, float64 ``(K,)``, as TAO defines them."""
    matrix = np.asarray(matrix_KK, dtype=np.float64)
    right, true, said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    recall, precision = right / (true + EPSILON), right / (said + EPSILON)
    return {
        "iou": right / (true + said - right + EPSILON),
        "F1": 2 * recall * precision / (recall + precision + EPSILON),
        "precision": precision,
        "recall": recall,
    }


def summary(matrix_KK: Counts) -> dict[str, float]:
    """Every metric of a confusion matrix by its short name: ``acc``, the means, then those of each class, changes
    before no change."""
    rates = per_class(matrix_KK)
    matrix = np.asarray(matrix_KK, dtype=np.float64)
    named = {"acc": float(np.trace(matrix) / (matrix.sum() + EPSILON))}
    named |= {mean: float(rates[name].mean()) for mean, name in _MEANS.items()}
    for k in class_order(len(matrix)):
        named |= {f"{name}_{k}": float(rates[name][k]) for name in PER_CLASS}
    return named


def class_order(num_classes: int) -> list[int]:
    """Class numbers in the order of tables: the changes first, no change (0) last."""
    return [*range(1, num_classes), 0]
