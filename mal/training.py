"""What a training step computes: the loss of a batch, and the teacher's moving average."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mal.losses import dice_loss, mil_loss, ramp_up
from mal.mean_field import MeanField

__all__ = ["LossParts", "Objective", "ema_update"]


class LossParts(NamedTuple):
    """The losses of a batch with their weights, scalars; ``refined`` the mean field's masks ``(B, H, W)``."""

    mil: Tensor
    crf: Tensor
    refined: Tensor

    @property
    def total(self) -> Tensor:
        return self.mil + self.crf


@dataclass(frozen=True)
class Objective:
    """Box projections (multiple instances) and agreement with a mask that follows the colours.

    ``*_steps``: steps of the first epoch over which a loss grows to its weight. ``size_ratio``: how much finer than the
    logits the mean field works.
    """

    mil_weight: float = 4.0
    crf_weight: float = 0.5
    mil_steps: int = 1000
    crf_steps: int = 4000
    size_ratio: int = 1
    mean_field: MeanField = field(default_factory=MeanField)

    def __call__(
        self, student_B1hw: Tensor, teacher_B1hw: Tensor, image_B3SS: Tensor, box_B1SS: Tensor, *, epoch: int, step: int
    ) -> LossParts:
        """``student`` and ``teacher`` logits, the normalised picture, the box mask; ``step`` counts from 0 in an epoch.

        Gradients flow to the student alone.
        """
        size = (student_B1hw.shape[2], student_B1hw.shape[3])
        fine = (size[0] * self.size_ratio, size[1] * self.size_ratio)
        prob, taught = student_B1hw.float().sigmoid(), teacher_B1hw.detach().float().sigmoid()
        box = _resized(box_B1SS.float(), size)[:, 0]
        each = mil_loss(prob[:, 0], box)
        mil = each.sum() / (len(each) + 1e-4) * (self.mil_weight * ramp_up(epoch, step, self.mil_steps))
        prob, taught, box = _resized(prob, fine)[:, 0], _resized(taught, fine)[:, 0], _resized(box[:, None], fine)[:, 0]
        refined = self.mean_field(_resized(image_B3SS.float(), fine), (prob.detach() + taught) / 2, box)
        crf = dice_loss(prob, refined).mean() * (self.crf_weight * ramp_up(epoch, step, self.crf_steps))
        return LossParts(mil, crf, refined)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def ema_update(teacher: Iterable[Tensor], student: Iterable[Tensor], *, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``, of each pair of tensors."""
    torch._foreach_lerp_(list(teacher), list(student), 1 - momentum)
