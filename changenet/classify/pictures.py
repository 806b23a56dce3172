"""What TensorBoard shows besides numbers: the first pairs of an epoch, and how the weights are spread."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from changenet.classify.transform import Normalization


class TrainingPictures(Callback):
    """Every ``every`` epochs the first pair, in the colours of its files, and a histogram of each parameter.

    Under the names of TAO: ``image/compare_sample``, ``image/golden_sample`` (or ``golden_sample0``, …) and
    ``histogram/<parameter>``.
    """

    def __init__(self, every: int, normalization: Normalization) -> None:
        self.every, self.normalization = every, normalization

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx or not self._due(trainer):
            return
        golden = batch["golden"][0]
        named = {"compare_sample": batch["test"][0]}
        if golden.ndim == 3:
            named["golden_sample"] = golden
        else:
            named |= {f"golden_sample{i}": image for i, image in enumerate(golden)}
        for writer in _writers(trainer):
            for name, image in named.items():
                writer.add_image(f"image/{name}", self._colours(image), trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._due(trainer):
            return
        for writer in _writers(trainer):
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(f"histogram/{name}", parameter.detach().float().cpu(), trainer.current_epoch)

    def _due(self, trainer: pl.Trainer) -> bool:
        return self.every > 0 and trainer.is_global_zero and trainer.current_epoch % self.every == 0

    def _colours(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.normalization.mean, self.normalization.std))
        return (image.detach().float().cpu() * std + mean).clamp(0, 1)


def _writers(trainer: pl.Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
