"""What TensorBoard shows besides numbers: the first pair of an epoch with its mask, and how the weights are spread."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from changenet.segment.counts import IGNORED
from changenet.segment.transform import Normalization


class TrainingPictures(Callback):
    """Every ``every`` epochs ``image/before``, ``image/after`` and ``image/mask`` of the first pair, in the colours of
    its files (ignored pixels of the mask in grey), and ``histogram/<parameter>`` of each parameter."""

    def __init__(self, every: int, normalization: Normalization, num_classes: int) -> None:
        self.every, self.normalization, self.num_classes = every, normalization, num_classes

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx or not self._due(trainer):
            return
        named = {"before": self._colours(batch["A"][0]), "after": self._colours(batch["B"][0])}
        for writer in _writers(trainer):
            for name, image in {**named, "mask": self._levels(batch["L"][0])}.items():
                writer.add_image(f"image/{name}", image, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._due(trainer):
            return
        for writer in _writers(trainer):
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(f"histogram/{name}", parameter.detach().float().cpu(), trainer.current_epoch)

    def _due(self, trainer: pl.Trainer) -> bool:
        return self.every > 0 and trainer.is_global_zero and trainer.current_epoch % self.every == 0

    def _colours(self, image_3HW: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.normalization.mean, self.normalization.std))
        return (image_3HW.detach().float().cpu() * std + mean).clamp(0, 1)

    def _levels(self, label_HW: Tensor) -> Tensor:
        level_HW = label_HW.cpu().float() / (self.num_classes - 1)
        return torch.where(label_HW.cpu() == IGNORED, 0.5, level_HW)[None]


def _writers(trainer: pl.Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
