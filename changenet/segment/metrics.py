"""Metrics of segment, all from confusion matrices: ``[true class, predicted class]`` counts of pixels.

Dims: B images, K classes, H and W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from changenet.segment.metric_names import PER_CLASS
from changenet.segment.rates import kpi_rate

__all__ = ["class_order", "confusion", "per_class", "summary"]

Counts = NDArray[np.int64]
_MEANS = {"miou": "iou", "mf1": "F1", "mprecision": "precision", "mrecall": "recall"}


def confusion(prediction_BHW: Tensor, label_BHW: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix of every image, int64 ``(B, K, K)``, on the device of the inputs.

    Both ``(B, H, W)`` of class numbers, of any integer dtype; arrays can be wrapped (:func:`torch.from_numpy`), which
    copies nothing. Pixels whose label is not one of the classes (255) are left out.
    Raises: ValueError when the shapes differ or, where that is known without waiting for a device, a prediction is not
        one of the classes.
    """
    if prediction_BHW.shape != label_BHW.shape:
        raise ValueError(f"masks of {tuple(prediction_BHW.shape)} and {tuple(label_BHW.shape)}")
    if label_BHW.device.type != "cpu" or type(label_BHW) is not Tensor:  # a stand-in without values has no array
        return _confusion_without_waiting(prediction_BHW, label_BHW, num_classes)
    found = np.zeros((len(label_BHW), num_classes, num_classes), np.int64)
    for image, (prediction, label) in enumerate(zip(prediction_BHW.numpy(), label_BHW.numpy(), strict=True)):
        counts = (label >= 0) & (label < num_classes)
        label_N, prediction_N = label[counts], prediction[counts]
        if len(label_N) and not (prediction_N.min() >= 0 and prediction_N.max() < num_classes):
            raise ValueError(f"predictions must be class numbers below {num_classes}")
        cell_N = label_N.astype(np.intp) * num_classes + prediction_N  # numpy counts them 15 times as fast as torch
        found[image] = np.bincount(cell_N, minlength=num_classes**2).reshape(num_classes, num_classes)
    return torch.from_numpy(found)


def _confusion_without_waiting(prediction_BHW: Tensor, label_BHW: Tensor, num_classes: int) -> Tensor:
    """:func:`confusion` with no shape that depends on values, for which a GPU would be waited: what does not count
    goes into a cell of its own."""
    counts_BHW = (label_BHW >= 0) & (label_BHW < num_classes)
    image_B = torch.arange(len(label_BHW), dtype=torch.int32, device=label_BHW.device)
    num_cells = len(label_BHW) * num_classes**2
    cell_BHW = (image_B.view(-1, 1, 1) * num_classes + label_BHW) * num_classes + prediction_BHW
    cell_N = torch.where(counts_BHW, cell_BHW, num_cells).long().flatten()
    one_N = cell_N.new_ones(()).expand(cell_N.shape)
    found = cell_N.new_zeros(num_cells + 1).scatter_add_(0, cell_N, one_N)
    return found[:-1].view(-1, num_classes, num_classes)


def per_class(matrix_KK: Counts) -> dict[str, NDArray[np.float64]]:
    """``iou``, ``F1``, ``precision`` and ``recall`` of every class, float64 ``(K,)``, as TAO defines them."""
    matrix = np.asarray(matrix_KK, dtype=np.float64)
    right, true, said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    recall, precision = kpi_rate(right, true), kpi_rate(right, said)
    return {
        "iou": kpi_rate(right, true + said - right),
        "F1": kpi_rate(2 * recall * precision, recall + precision),
        "precision": precision,
        "recall": recall,
    }


def summary(matrix_KK: Counts) -> dict[str, float]:
    """Every metric of a confusion matrix by its short name: ``acc``, the means, then those of each class, changes
    before no change."""
    rates = per_class(matrix_KK)
    matrix = np.asarray(matrix_KK, dtype=np.float64)
    named = {"acc": float(kpi_rate(np.trace(matrix), matrix.sum()))}
    named |= {mean: float(rates[name].mean()) for mean, name in _MEANS.items()}
    for k in class_order(len(matrix)):
        named |= {f"{name}_{k}": float(rates[name][k]) for name in PER_CLASS}
    return named


def class_order(num_classes: int) -> list[int]:
    """Class numbers in the order of tables: the changes first, no change (0) last."""
    return [*range(1, num_classes), 0]
