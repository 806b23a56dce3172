"""What a training run tells while it goes: KPIs and progress, for people and for status.json."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from fiducial.run.console import LOGGER
from fiducial.run.status import StatusWriter

LINE_EVERY_S = 10.0
"""Seconds between progress lines where there is no terminal."""


class Reporter(Callback):
    """Asks ``module.epoch_kpis(stage)`` for the KPIs of every epoch, logs them, and writes TAO's status records.

    The records of an epoch: ``Eval metrics generated.``, ``Training loop in progress``, ``Train metrics generated.``
    """

    def __init__(self, status: StatusWriter) -> None:
        self.status = status
        self.batches = self.epoch_batches = 0
        self.seconds = 0.0
        self.epoch_start = self.batch_start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.status.write("Starting Training Loop.", "STARTED")
        self.epoch_start = time.monotonic()  # an epoch that is resumed in its middle has no start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_start, self.epoch_batches = time.monotonic(), 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch_start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        self.epoch_batches += 1
        self.seconds += time.monotonic() - self.batch_start

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kpis = pl_module.epoch_kpis("val")  # type: ignore[operator]
        self._log(pl_module, kpis)
        if not trainer.sanity_checking:
            self.status.write("Eval metrics generated.", kpi=kpis, epoch=trainer.current_epoch)
            shown = ", ".join(
                f"{name} {value:.4g}" for name, value in kpis.items() if value == value and "/" not in name
            )
            LOGGER.info("epoch %d: %s", trainer.current_epoch, shown)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, epochs = trainer.current_epoch, trainer.max_epochs or 0
        per_epoch = time.monotonic() - self.epoch_start
        self.status.write(
            "Training loop in progress",
            epoch=epoch,
            step=trainer.global_step,
            max_epoch=epochs - 1,
            max_step=trainer.max_steps if trainer.max_steps >= 1 else int(epochs * trainer.num_training_batches),
            time_per_epoch=str(timedelta(seconds=per_epoch)),
            time_per_step=str(timedelta(seconds=self.seconds / max(1, self.batches))),
            eta=str(timedelta(seconds=(epochs - 1 - epoch) * per_epoch)),
        )
        if self.epoch_batches < trainer.num_training_batches:
            LOGGER.warning(
                "epoch %d was resumed: its train metrics are those of its last %d of %d batches",
                *(epoch, self.epoch_batches, trainer.num_training_batches),
            )
        if not self.epoch_batches:
            return
        kpis = pl_module.epoch_kpis("train")  # type: ignore[operator]
        self._log(pl_module, {name: value for name, value in kpis.items() if name != "train_loss"})
        self.status.write("Train metrics generated.", kpi=kpis, epoch=epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.status.write("Training loop complete.")

    @staticmethod
    def _log(pl_module: pl.LightningModule, kpis: dict[str, float]) -> None:
        # already gathered over the ranks: the same number on each
        pl_module.log_dict(
            {name: value for name, value in kpis.items() if value == value}, sync_dist=False, batch_size=1
        )


class ProgressLines(Callback):
    """Progress as plain lines that can be searched, for logs and pipes: rate, loss, time left."""

    def __init__(self) -> None:
        self.last = self.start = 0.0
        self.done = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = self.start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = self.start = time.monotonic()
        self.done = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.done += 1
        now = time.monotonic()
        total = int(trainer.num_training_batches)
        if now - self.last < LINE_EVERY_S and batch_idx + 1 < total:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        epochs_left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        left = (total - batch_idx - 1 + epochs_left * total) / rate
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        LOGGER.info(
            "epoch %d/%s step %d/%d loss %.4f %.2f batches/s left %s",
            trainer.current_epoch,
            (trainer.max_epochs or 0) - 1,
            batch_idx + 1,
            total,
            float(loss),
            rate,
            timedelta(seconds=round(left)),
        )


def on_terminal() -> bool:
    """Whether a person watches."""
    return sys.stderr.isatty() and sys.stdout.isatty()


def progress() -> Callback:
    """A bar on a terminal, plain lines elsewhere."""
    if on_terminal():
        from pytorch_lightning.callbacks import RichProgressBar

        return RichProgressBar()
    return ProgressLines()
