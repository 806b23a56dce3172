"""Mean-field inference that turns soft masks into hard ones that follow the colours of the image.

Message passing over the neighbourhood of each pixel, without a unary term (Lan et al. 2023, "Vision Transformers Are
Good Mask Auto-Labelers", §3.4, as the published code computes it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MeanField"]

_SHIFT = 10.0
"""Added to the image before it is padded with zeros, so that nothing outside it resembles anything in it."""
_EPS = 1e-6


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
        affinity = self._affinities(image_B3HW.float())
        box_BHW = box_BHW.float()
        x_BHW = (prob_BHW.float() * box_BHW).clamp(self.low, self.high)
        radius = self.kernel_size // 2
        batch, height, width = x_BHW.shape
        # log-probabilities of background and foreground, with a border that contributes nothing
        padded = x_BHW.new_zeros(2, batch, height + 2 * radius, width + 2 * radius)
        inner = padded[:, :, radius : radius + height, radius : radius + width]
        message = torch.empty_like(inner, memory_format=torch.contiguous_format)
        neighbours = [padded[:, :, y : y + height, x : x + width] for y, x in self._offsets()]
        for _ in range(self.num_iter):
            torch.log(1 - x_BHW, out=inner[0])
            torch.log(x_BHW, out=inner[1])
            message.copy_(inner)  # a pixel is its own neighbour, with affinity 1
            for weight, neighbour in zip(affinity, neighbours, strict=True):
                message.addcmul_(weight, neighbour)
            background, foreground = message.exp_()
            foreground.mul_(box_BHW)
            x_BHW = (foreground / background.add_(foreground).add_(_EPS)).clamp_(self.low, self.high)
        return (x_BHW > 0.5).float()

    def _offsets(self) -> list[tuple[int, int]]:
        """Top left corners of the neighbours' windows in a padded image; the pixel itself is left out."""
        side, centre = range(self.kernel_size), self.kernel_size // 2
        return [(y, x) for y in side for x in side if (y, x) != (centre, centre)]

    def _affinities(self, image_B3HW: Tensor) -> list[Tensor]:
        """How alike each pixel and its neighbour are, ``exp(-|c - c'|^2 / (2 zeta^2))``, for every neighbour."""
        height, width = image_B3HW.shape[-2:]
        radius = self.kernel_size // 2
        shifted = image_B3HW + _SHIFT
        padded = F.pad(shifted, (radius,) * 4)
        scale = -1 / (2 * self.zeta**2)
        return [
            (padded[:, :, y : y + height, x : x + width] - shifted).square().sum(1).mul_(scale).exp_()
            for y, x in self._offsets()
        ]
