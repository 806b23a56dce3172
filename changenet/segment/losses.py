"""Losses of segment: each takes logits ``(B, K, h, w)`` and class numbers ``(B, H, W)``, and gives a scalar.

Pixels labelled :data:`IGNORED` count for nothing; where no pixel counts, a loss is 0.

Dims: B batch, K classes, H and W rows and columns, P all pixels that count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changenet.segment.counts import IGNORED

__all__ = ["LOSSES", "Loss", "cross_entropy", "dice", "focal", "mmiou", "multi_scale", "pixel_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logit_BKhw: Tensor, label_BHW: Tensor, *, weight_K: Tensor | None = None) -> Tensor:
    """Mean cross entropy over the pixels that count, weighted by class if ``weight_K`` is given.

    Logits of another size are first resized to the label, bilinear with ``align_corners=True``, as in TAO.
    """
    logit_BKHW, label_BHW = _fitted(logit_BKhw, label_BHW)
    weight_K = None if weight_K is None else weight_K.to(logit_BKHW, non_blocking=True)
    total = F.cross_entropy(logit_BKHW, label_BHW, weight_K, ignore_index=IGNORED, reduction="sum")
    counted_BHW = label_BHW != IGNORED
    if weight_K is None:
        return total / counted_BHW.sum().clamp(min=1)
    count = (weight_K[label_BHW * counted_BHW] * counted_BHW).sum()
    return total / count.clamp(min=torch.finfo(total.dtype).tiny)


def focal(logit_BKhw: Tensor, label_BHW: Tensor, *, gamma: float = 2.0, weight_K: Tensor | None = None) -> Tensor:
    """Mean of ``-w (1 - p)^gamma log p`` over the pixels that count, p the probability of the true class (Lin et al.
    2017, eq. 5). With gamma 0 and without weights it is :func:`cross_entropy`.
    """
    logit_BKHW, label_BHW = _fitted(logit_BKhw, label_BHW)
    counted_BHW = label_BHW != IGNORED
    safe_BHW = label_BHW * counted_BHW
    log_p_BHW = logit_BKHW.log_softmax(1).gather(1, safe_BHW[:, None])[:, 0]
    loss_BHW = -((1 - log_p_BHW.exp()) ** gamma) * log_p_BHW
    if weight_K is not None:
        loss_BHW = loss_BHW * weight_K.to(loss_BHW, non_blocking=True)[safe_BHW]
    return (loss_BHW * counted_BHW).sum() / counted_BHW.sum().clamp(min=1)


def dice(logit_BKhw: Tensor, label_BHW: Tensor, *, weight_K: Tensor | None = None) -> Tensor:
    """``1 - mean 2 sum(p y) / (sum p + sum y)`` over the classes that the batch holds (Milletari et al. 2016, without
    their squares); sums run over all pixels of the batch. ``weight_K`` weights the mean.
    """
    p_KP, y_KP = _soft_and_hard(logit_BKhw, label_BHW, per_image=False)
    overlap_K, total_K = (p_KP * y_KP).sum(1), (p_KP + y_KP).sum(1)
    present_K = (y_KP.sum(1) > 0).to(p_KP)
    weight = present_K if weight_K is None else present_K * weight_K.to(p_KP, non_blocking=True)
    score_K = 2 * overlap_K / total_K.clamp(min=torch.finfo(p_KP.dtype).tiny)
    return ((1 - score_K) * weight).sum() / weight.sum().clamp(min=torch.finfo(p_KP.dtype).tiny)


def mmiou(logit_BKhw: Tensor, label_BHW: Tensor, *, absent_classes: bool = False) -> Tensor:
    """``-min IoU - mean IoU`` of soft IoUs ``sum(p y) / sum(p + y - p y)``, one per image and class.

    A class that an image lacks has a soft IoU of 0 whatever the network says. Such pairs are left out, unless
    ``absent_classes``: TAO counts them, and then its minimum has no gradient.
    """
    p_BKP, y_BKP = _soft_and_hard(logit_BKhw, label_BHW, per_image=True)
    overlap_BK = (p_BKP * y_BKP).sum(2)
    iou_BK = overlap_BK / ((p_BKP + y_BKP - p_BKP * y_BKP).sum(2) + 1e-8)
    if absent_classes:
        return -iou_BK.min() - iou_BK.mean()
    present_BK = y_BKP.sum(2) > 0
    mean = (iou_BK * present_BK).sum() / present_BK.sum().clamp(min=1)
    lowest = torch.where(present_BK, iou_BK, 1.0).min() * present_BK.any()
    return -lowest - mean


LOSSES: dict[str, Callable[..., Tensor]] = {"ce": cross_entropy, "mmiou": mmiou, "focal": focal, "dice": dice}
"""The losses by their names in a spec."""


def pixel_loss(
    name: str, *, class_weights: Sequence[float] | None = None, gamma: float = 2.0, compat_tao: bool = False
) -> Loss:
    """The loss of a spec's name; ``class_weights`` counts for all but mmiou, ``gamma`` for focal.

    Raises: KeyError for an unknown name.
    """
    options: dict[str, Any] = {}
    if name == "mmiou":
        options["absent_classes"] = compat_tao
    elif class_weights is not None:
        options["weight_K"] = torch.tensor(list(class_weights))
    if name == "focal":
        options["gamma"] = gamma
    return partial(LOSSES[name], **options)


def multi_scale(predictions: Sequence[Tensor], label_BHW: Tensor, weights: Sequence[float], loss: Loss) -> Tensor:
    """Weighted sum of the losses of predictions of several sizes, each against the label resized to it (nearest).

    One weight per prediction; a weight of 0 leaves its prediction out.
    """
    total = label_BHW.new_zeros((), dtype=predictions[-1].dtype)
    for logit_BKhw, weight in zip(predictions, weights, strict=True):
        if weight:
            total = total + weight * loss(logit_BKhw, _shrunk(label_BHW, logit_BKhw.shape[-2:]))
    return total


def _shrunk(label_BHW: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(label_BHW.shape[-2:]) == tuple(size):
        return label_BHW
    return F.interpolate(label_BHW[:, None].float(), size=tuple(size), mode="nearest")[:, 0].to(label_BHW.dtype)


def _fitted(logit_BKhw: Tensor, label_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in at least float32 and of the label's size, the label as int64."""
    logit_BKhw = logit_BKhw.to(torch.promote_types(logit_BKhw.dtype, torch.float32))
    if logit_BKhw.shape[-2:] != label_BHW.shape[-2:]:
        logit_BKhw = F.interpolate(logit_BKhw, size=label_BHW.shape[-2:], mode="bilinear", align_corners=True)
    return logit_BKhw, label_BHW.long()


def _soft_and_hard(logit_BKhw: Tensor, label_BHW: Tensor, *, per_image: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels, 0 where ignored: ``(B, K, pixels)``, or ``(K, B * pixels)`` of the batch."""
    logit_BKHW, label_BHW = _fitted(logit_BKhw, label_BHW)
    counted_B1HW = (label_BHW != IGNORED)[:, None].to(logit_BKHW)
    label_B1HW = label_BHW[:, None] * counted_B1HW.long()
    y_BKHW = torch.zeros_like(logit_BKHW).scatter_(1, label_B1HW, 1.0) * counted_B1HW
    p_BKHW = logit_BKHW.softmax(1) * counted_B1HW
    if per_image:
        return p_BKHW.flatten(2), y_BKHW.flatten(2)
    return p_BKHW.transpose(0, 1).flatten(1), y_BKHW.transpose(0, 1).flatten(1)
