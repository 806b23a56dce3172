"""From the pixels of a file to what a network sees, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiducial.deploy.card import ModelCard
from fiducial.errors import CheckpointError

__all__ = ["Normalization"]


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and std of images in 0..1, RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, card: ModelCard) -> Normalization:
        """What a model says that it was trained with. Raises: CheckpointError when it does not say three of each."""
        if len(card.mean) != 3 or len(card.std) != 3:
            found = f"mean {list(card.mean)}, std {list(card.std)}: three of each are needed"
            raise CheckpointError("the model's card", found, "export the model again, or train it anew")
        return cls((card.mean[0], card.mean[1], card.mean[2]), (card.std[0], card.std[1], card.std[2]))

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """``(..., H, W, 3)`` uint8 to ``(..., 3, H, W)`` float32: ``(x / 255 - mean) / std``."""
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3))).float().div_(255)
        mean, std = self._columns()
        return x.sub_(mean).div_(std)

    def undo(self, image_3HW: Tensor) -> Tensor:
        """The normalised image as it was, float32 in 0..1 on the CPU."""
        mean, std = self._columns()
        return (image_3HW.detach().float().cpu() * std + mean).clamp(0, 1)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Normalised images ``(..., 3, H, W)`` as float32 in 0..255, not rounded, where they are."""
        mean, std = (column.to(images.device) for column in self._columns())
        return (images.float() * std + mean) * 255

    def _columns(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.mean, self.std))
        return mean, std
