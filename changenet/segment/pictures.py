"""What TensorBoard shows besides numbers: the first pair of an epoch with its mask, and how the weights are spread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from changenet.normalization import Normalization
from changenet.pictures import FirstBatchPictures
from changenet.segment.counts import IGNORED


class TrainingPictures(FirstBatchPictures):
    """``image/before``, ``image/after`` and ``image/mask`` of the first pair, in the colours of its files (ignored
    pixels of the mask in grey)."""

    def __init__(self, every: int, normalization: Normalization, num_classes: int) -> None:
        super().__init__(every, normalization)
        self.num_classes = num_classes

    def images(self, batch: Any) -> dict[str, Tensor]:
        before, after = (self.normalization.undo(batch[name][0]) for name in ("A", "B"))
        return {"before": before, "after": after, "mask": self._levels(batch["L"][0])}

    def _levels(self, label_HW: Tensor) -> Tensor:
        level_HW = label_HW.cpu().float() / (self.num_classes - 1)
        return torch.where(label_HW.cpu() == IGNORED, 0.5, level_HW)[None]
