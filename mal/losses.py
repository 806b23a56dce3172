"""Losses that need boxes only (Lan et al. 2023, §3.3 and §3.4). All of them in float32."""

from __future__ import annotations

from torch import Tensor

__all__ = ["dice_loss", "mil_loss", "ramp_up"]

_SMOOTH = 0.001


def dice_loss(pred: Tensor, target: Tensor) -> Tensor:
    """``1 - 2 sum(a t) / (sum(a^2) + sum(t^2) + 0.002)`` of each sample.

    Shapes: both ``(B, ...)``, probabilities in 0..1; returns ``(B,)``.
    """
    a, t = pred.float().flatten(1), target.float().flatten(1)
    both = (a.square().sum(1) + _SMOOTH) + (t.square().sum(1) + _SMOOTH)
    return 1 - 2 * (a * t).sum(1) / both


def mil_loss(pred_BHW: Tensor, box_BHW: Tensor) -> Tensor:
    """Multiple-instance loss: every row and every column that crosses the box holds some of the object, no other does.

    The dice loss of the maxima of rows plus that of columns, of each sample. Shapes: both ``(B, H, W)`` in 0..1;
    returns ``(B,)``.
    """
    rows = dice_loss(pred_BHW.amax(2), box_BHW.amax(2))
    return rows + dice_loss(pred_BHW.amax(1), box_BHW.amax(1))


def ramp_up(epoch: int, step: int, num_steps: int) -> float:
    """The share of a loss's weight at a step of an epoch: grows from 0 to 1 over the first epoch's ``num_steps``."""
    return 1.0 if epoch > 0 else min(1.0, step / num_steps)
