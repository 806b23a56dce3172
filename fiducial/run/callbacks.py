"""What a training run tells while it goes: KPIs and progress, for people and for status.json."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from fiducial.metric_table import MetricTable, Stage
from fiducial.ops.linear import LINEARS
from fiducial.prediction import Kpis
from fiducial.progress import Pace, clock
from fiducial.run.console import LOGGER
from fiducial.run.interrupt import install, restore
from fiducial.run.status import StatusWriter
from fiducial.training.module import TrainingModule

_DRAWN_EVERY = 20
"""Batches between two pictures of the progress bar, with a GPU."""
SHM_PER_WORKER_MIB = 64
"""Shared memory that a loader process should find."""


class Reporter(Callback):
    """Asks the module for the KPIs of every epoch, logs them, and writes TAO's status records.

    The records of an epoch: ``Eval metrics generated.``, ``Training loop in progress``, ``Train metrics generated.``
    ``latest`` are the newest KPIs, ``history`` those of every validation with its epoch.
    """

    def __init__(self, status: StatusWriter, metrics: MetricTable) -> None:
        self.status, self.metrics = status, metrics
        self.latest: Kpis = {}
        self.history: list[tuple[int, Kpis]] = []
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
        if self.batches == 1 and (chosen := LINEARS.describe()):
            LOGGER.info(chosen)
        self.seconds += time.monotonic() - self.batch_start

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kpis = self._kpis(pl_module, "val")
        if not trainer.sanity_checking and kpis:
            self.history.append((trainer.current_epoch, kpis))
            self.status.write("Eval metrics generated.", kpi=kpis, epoch=trainer.current_epoch)
            LOGGER.info("epoch %d: %s", trainer.current_epoch, self._shown(kpis))

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
        kpis = self._kpis(pl_module, "train")
        self.status.write("Train metrics generated.", kpi=kpis, epoch=epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.status.write("Training loop complete.")

    def _kpis(self, pl_module: pl.LightningModule, stage: Stage) -> Kpis:
        """The module's KPIs of a stage, logged: they are gathered already, the same numbers on each rank."""
        kpis = pl_module.kpis(stage) if isinstance(pl_module, TrainingModule) else {}
        for name, value in kpis.items():
            if isinstance(value, str) or value is None:
                continue  # but NaN is logged: else a monitor would find the number of an earlier epoch under the name
            names = self.metrics.logged(name, stage)
            for other in names:
                pl_module.log(other, value, sync_dist=False, batch_size=1)
            if names and name not in names:  # no curve of its own, but a monitor may name it
                pl_module.log(name, value, logger=False, sync_dist=False, batch_size=1)
        self.latest |= kpis
        return kpis

    def _shown(self, kpis: Kpis) -> str:
        """The KPIs as one line, without those of groups and those that nothing could be computed from."""
        known = {name: self.metrics.find(name) for name in kpis}
        plain = {n: v for n, v in kpis.items() if not ((row := known[n]) and row.grouped and "/" in n)}
        numbers = {n: v for n, v in plain.items() if v is not None and v == v}
        return ", ".join(f"{n} {v}" if isinstance(v, str) else f"{n} {v:.4g}" for n, v in numbers.items())


class ProgressLines(Callback):
    """Progress as plain lines that can be searched, for logs and pipes: rate, loss, time left."""

    def __init__(self) -> None:
        self._training, self._watching = Pace(), Pace()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = Pace()  # an epoch that is resumed in its middle has no start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = Pace()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epoch, epochs, total = trainer.current_epoch, trainer.max_epochs or 0, int(trainer.num_training_batches)
        pace = self._training
        if pace.step() or batch_idx + 1 == total:
            last = pl_module.last_loss if isinstance(pl_module, TrainingModule) else None
            loss = "" if last is None else f"loss {float(last):.4f} "
            left = clock((total - batch_idx - 1 + (epochs - epoch - 1) * total) / pace.rate)
            where = (epoch, epochs - 1, batch_idx + 1, total)
            LOGGER.info("epoch %d/%d step %d/%d %s%.2f batches/s left %s", *where, loss, pace.rate, left)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sizes = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._watching = Pace(sum(sizes))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watching = Pace(sum(trainer.num_test_batches))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._watching.step():
            self._tell("validation batch")

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        if self._watching.step() or self._watching.done == self._watching.total:
            self._tell("batch")

    def _tell(self, what: str) -> None:
        pace = self._watching
        LOGGER.info("%s %d/%d %.2f batches/s left %s", what, pace.done, pace.total, pace.rate, pace.left)


class Interrupt(Callback):
    """Lets a signal wait for the end of the batch, when weights, optimiser and position agree; a second one does not.

    Replaces Lightning's handler of SIGTERM, which communicates between processes inside a signal handler.
    """

    def __init__(self) -> None:
        self.asked = False
        self.process = os.getpid()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = install(self._ask)

    def on_train_batch_end(self, *_: Any) -> None:
        self._stop()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        restore(self._before)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        restore(self._before)

    def _ask(self, number: int, _: Any) -> None:
        if os.getpid() != self.process:  # a forked worker of a data loader, which its parent ends
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        LOGGER.warning("%s: stopping after this batch", signal.Signals(number).name)

    def _stop(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


class Pictures(Callback):
    """Histograms of the weights, and pictures of an epoch's first batch, in TensorBoard, from the first epoch on."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx or not isinstance(pl_module, TrainingModule):
            return
        for writer in self._writers(trainer):
            for name, image in pl_module.preview(batch).items():
                writer.add_image(f"image/{name}", image, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for writer in self._writers(trainer):
            for name, parameter in pl_module.named_parameters():
                if parameter.isfinite().all():  # a histogram of anything else is an error
                    writer.add_histogram(f"histogram/{name}", parameter, trainer.global_step)

    def _writers(self, trainer: pl.Trainer) -> list[Any]:
        if trainer.current_epoch % self.every or not trainer.is_global_zero:
            return []
        return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class SharedMemory(Callback):
    """Warns when ``/dev/shm``, through which loader processes hand over batches, is small, as in containers."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        workers = int(getattr(trainer.train_dataloader, "num_workers", 0))
        warning = small_shared_memory(workers)
        if warning:
            LOGGER.warning("%s", warning)


def small_shared_memory(workers: int, folder: str = "/dev/shm") -> str:
    """What to say about shared memory too small for so many loader processes; empty when it suffices."""
    try:
        mib = shutil.disk_usage(folder).total >> 20
    except OSError:  # a system that has none
        return ""
    if mib >= SHM_PER_WORKER_MIB * workers:
        return ""
    return (
        f"{folder} has {mib} MiB for {workers} loader process(es): a worker may die with a bus error; enlarge it "
        "(docker run --shm-size=8g) or lower the number of workers in the dataset section"
    )


def on_terminal() -> bool:
    """Whether a person watches."""
    return sys.stderr.isatty() and sys.stdout.isatty()


def progress() -> Callback:
    """A bar on a terminal, plain lines elsewhere."""
    if not on_terminal():
        return ProgressLines()
    from pytorch_lightning.callbacks import RichProgressBar

    class Bar(RichProgressBar):
        """Shows the loss, which is read when the bar is drawn: on a GPU seldom, as the step then waits for it."""

        def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
            shown = super().get_metrics(trainer, pl_module)
            last = pl_module.last_loss if isinstance(pl_module, TrainingModule) else None
            return shown if last is None else {**shown, "loss": float(last)}

    return Bar(refresh_rate=_DRAWN_EVERY if torch.cuda.is_available() else 1)
