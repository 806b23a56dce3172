"""The checkpoints that a training run leaves: periodic ones, the best ones, and the links to them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from fiducial.checkpoints.atomic import link
from fiducial.errors import StorageError, TrainingError
from fiducial.run.console import LOGGER
from fiducial.run.names import best_name, checkpoint_name


def is_better(value: float, than: float | None, mode: str) -> bool:
    """Whether a metric improves on another; what is not finite never does."""
    if not math.isfinite(value):
        return False
    return than is None or (value < than if mode == "min" else value > than)


def _batches_trained(trainer: pl.Trainer) -> int:
    """Of the whole run; several of them may make one step."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(total.processed)


class PeriodicCheckpoint(Checkpoint):
    """``model_epoch_EEE_step_SSSSS.pth`` every so often, ``<prefix>_latest.pth`` and ``<prefix>_best.pth`` as links.

    On any exception during training the current state is saved too. ``keep`` newest files stay (None: all), the one
    that the best link points to, and the one that training was continued from: it may be asked for again, with other
    learning rates. A file counts when it is whole: one that an exception cut off is written again.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        *,
        every: int,
        unit: str,
        monitor: str,
        mode: str,
        keep: int | None,
        periodic: bool,
    ) -> None:
        self.folder, self.prefix, self.every, self.unit = folder, prefix, every, unit
        self.monitor, self.mode, self.keep, self.periodic = monitor, mode, keep, periodic
        self.best_value: float | None = None
        self.best_file = ""
        self.saved: list[str] = []
        self._step = self._passed = -1
        self._begun_from = ""
        self._batches = 0  # that the last file knows
        self._ranks = False  # whether the file that is being written is one to be ranked

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._passed, self._batches = trainer.global_step, _batches_trained(trainer)
        self._begun_from = Path(trainer.ckpt_path).name if trainer.ckpt_path else ""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # the last batch's file is left to the end of the epoch, when the validation is part of it: the same name
        if batch_idx + 1 < trainer.num_training_batches and self._steps_due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        due = self._steps_due(trainer) or (self.unit == "epoch" and done % self.every == 0)
        if self.periodic and (due or done == trainer.max_epochs):
            self._save(trainer, rank=True)

    def _steps_due(self, trainer: pl.Trainer) -> bool:
        """Whether a multiple of the interval was passed since last asked: several optimizers step more than once."""
        before, self._passed = self._passed, trainer.global_step
        passed = self._passed // self.every > before // self.every
        return self.periodic and self.unit == "step" and passed and self._passed != self._step

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (StorageError, TrainingError)):
            return  # it is a file that could not be written, or must not be
        if trainer.state.fn != "fit" or trainer.world_size > 1 or _batches_trained(trainer) == self._batches:
            return  # with several processes the others may be gone, and saving is a collective call
        LOGGER.warning("training stopped (%s): saving the current state", type(exception).__name__)
        try:
            self._save(trainer, rank=self._ranks)
        except Exception as error:  # must not hide what stopped the training
            LOGGER.error("the current state is not saved: %s", error)

    def _save(self, trainer: pl.Trainer, *, rank: bool = False) -> None:
        path = self.folder / checkpoint_name(trainer.current_epoch, trainer.global_step)
        value = trainer.callback_metrics.get(self.monitor) if rank else None
        before, self._ranks = (self.best_value, self.best_file, self.saved, self._step), rank
        better = value is not None and is_better(float(value), self.best_value, self.mode)
        try:  # the file holds this state, itself included
            if better and value is not None:
                self.best_value, self.best_file = float(value), path.name
            dropped = self._note(path.name)
            self._step = trainer.global_step
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                link(path, self.folder / f"{self.prefix}_latest.pth")
                if better:
                    link(path, self.folder / f"{self.prefix}_best.pth")
                for name in dropped:
                    (self.folder / name).unlink(missing_ok=True)
        except BaseException:
            self.best_value, self.best_file, self.saved, self._step = before
            raise
        self._batches, self._ranks = _batches_trained(trainer), False

    def _note(self, name: str) -> list[str]:
        """Remember a file; returns those that are to go."""
        self.saved = [kept for kept in self.saved if kept != name] + [name]
        if self.keep is None:
            return []
        old = [kept for kept in self.saved[: -self.keep] if kept not in (self.best_file, self._begun_from)]
        self.saved = [kept for kept in self.saved if kept not in old]
        return old

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_value": self.best_value,
            "best_file": self.best_file,
            "saved": self.saved,
            "step": self._step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step = int(state_dict["step"])
        # a run that continues in another folder, or after files were deleted, has only what is there
        self.saved = [name for name in state_dict["saved"] if (self.folder / name).exists()]
        if state_dict["best_file"] in self.saved:
            self.best_value, self.best_file = state_dict["best_value"], state_dict["best_file"]


class BestCheckpoint(Checkpoint):
    """``train.checkpointer``: the ``top_k`` best by a metric, ranked after every validation.

    With ``latest`` (``replace_periodic``) it also owns that link. Files are written when the epoch is over, so that
    resuming from one begins the next epoch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monitor: str,
        mode: str,
        top_k: int,
        template: str,
        insert_names: bool,
        latest: Path | None,
    ) -> None:
        self.folder, self.monitor, self.mode, self.top_k = folder, monitor, mode, top_k
        self.template, self.insert_names, self.latest = template, insert_names, latest
        self.ranked: list[tuple[float, str]] = []
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validated or self.monitor.startswith("train"):
            self._consider(trainer)
        self._validated = False

    def _consider(self, trainer: pl.Trainer) -> None:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            known = f"Available metrics: {sorted(metrics)}"
            raise ValueError(f"checkpointer.monitor='{self.monitor}' is not logged by this model. {known}")
        value = float(metrics[self.monitor])
        full = len(self.ranked) >= self.top_k
        if not math.isfinite(value) or (full and not is_better(value, self.ranked[-1][0], self.mode)):
            return
        values: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        values |= {name: float(metric) for name, metric in metrics.items()}
        name = best_name(self.template, values, insert_names=self.insert_names)
        kept = [*((v, n) for v, n in self.ranked if n != name), (value, name)]
        kept.sort(key=lambda item: item[0], reverse=self.mode == "max")
        dropped = [old for _, old in kept[self.top_k :]]
        before, self.ranked = self.ranked, kept[: self.top_k]
        try:  # the file holds this state, itself included
            trainer.save_checkpoint(self.folder / name)
        except BaseException:
            self.ranked = before
            raise
        if trainer.is_global_zero:
            if self.latest is not None:
                link(self.folder / name, self.latest)
            for old in dropped:
                (self.folder / old).unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {"ranked": [[value, name] for value, name in self.ranked]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        there = [(value, name) for value, name in state_dict["ranked"] if (self.folder / name).exists()]
        self.ranked = [(float(value), str(name)) for value, name in there]
