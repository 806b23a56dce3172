"""What TensorBoard shows of a training besides numbers, whatever the task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from changenet.normalization import Normalization

__all__ = ["FirstBatchPictures"]


class FirstBatchPictures(Callback):
    """Every ``every`` epochs ``image/<name>`` of a task's images, and ``histogram/<parameter>`` of each parameter."""

    def __init__(self, every: int, normalization: Normalization) -> None:
        self.every, self.normalization = every, normalization

    @abstractmethod
    def images(self, batch: Any) -> Mapping[str, Tensor]:
        """What to show of an epoch's first batch: ``(C, H, W)`` in 0..1."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx or not self._due(trainer):
            return
        for writer in _writers(trainer):
            for name, image in self.images(batch).items():
                writer.add_image(f"image/{name}", image, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._due(trainer):
            return
        for writer in _writers(trainer):
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(f"histogram/{name}", parameter.detach().float().cpu(), trainer.current_epoch)

    def _due(self, trainer: pl.Trainer) -> bool:
        return self.every > 0 and trainer.is_global_zero and trainer.current_epoch % self.every == 0


def _writers(trainer: pl.Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
