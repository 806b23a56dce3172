"""Mean-field inference that turns soft masks into hard ones that follow the colours of the image.

Message passing over the neighbourhood of each pixel, without a unary term (Lan et al. 2023, "Vision Transformers Are
Good Mask Auto-Labelers", §3.4, as the published code computes it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fiducial.ops.message_passing import message_passing, neighbourhood

__all__ = ["MeanField"]

_SHIFT = 10.0
"""Added to the image before it is padded with zeros, so that nothing outside it resembles anything in it."""


@dataclass(frozen=True)
class MeanField:
    """Settings, and the iteration.

    ``kernel_size`` (odd): side of the neighbourhood. ``zeta``: colour bandwidth. ``num_iter``: iterations. ``low``,
    ``high``: probabilities are held within them.

    Raises: ValueError for an even ``kernel_size``.
    """

    kernel_size: int = 3
    zeta: float = 0.1
    num_iter: int = 100
    low: float = 0.1
    high: float = 0.9

    def __post_init__(self) -> None:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"the kernel size must be odd, got {self.kernel_size}")

    @torch.no_grad()
    def __call__(self, image_B3HW: Tensor, prob_BHW: Tensor, box_BHW: Tensor) -> Tensor:
        """The hard mask, 0 or 1, ``(B, H, W)`` float32.

        ``image``: normalised colours. ``prob``: where the object is thought to be. ``box``: 1 within the box, 0
        outside it; nothing outside becomes mask. Gradients are not recorded.
        """
        x_BHW = message_passing(
            self._affinities(image_B3HW.float()),
            box_BHW.float(),
            prob_BHW.float(),
            radius=self.kernel_size // 2,
            num_iter=self.num_iter,
            low=self.low,
            high=self.high,
        )
        return (x_BHW > 0.5).float()

    def _affinities(self, image_B3HW: Tensor) -> Tensor:
        """How alike each pixel and its neighbours are, ``exp(-|c - c'|^2 / (2 zeta^2))``: ``(J, B, H, W)``."""
        height, width = image_B3HW.shape[-2:]
        radius = self.kernel_size // 2
        shifted = image_B3HW + _SHIFT
        padded = F.pad(shifted, (radius,) * 4)
        neighbours = neighbourhood(radius)
        apart = image_B3HW.new_empty(len(neighbours), len(image_B3HW), height, width)
        for out, (y, x) in zip(apart, neighbours, strict=True):
            torch.sum((padded[:, :, y : y + height, x : x + width] - shifted).square_(), 1, out=out)
        return apart.mul_(-1 / (2 * self.zeta**2)).exp_()
