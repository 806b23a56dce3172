"""Optimizers of a training that is continued: whose state it is, and a learning rate that was changed meanwhile."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from fiducial.errors import CheckpointError
from fiducial.run.resume import check_finite
from fiducial.training.module import TrainingModule
from fiducial.training.optim import settle


class SameOptimizer(Callback):
    """Stops before the first batch when the state that was restored is that of another kind of optimizer.

    Of the same kind, whether it was fused does not matter.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises: CheckpointError."""
        for optimizer in trainer.optimizers:
            if missing := optimizer.defaults.keys() - optimizer.param_groups[0].keys():
                found = f"the state of another optimizer: {type(optimizer).__name__} needs {', '.join(sorted(missing))}"
                raise CheckpointError("the checkpoint to continue from", found, "use the optimizer of that run")
            settle(optimizer)


class StopDiverged(Callback):
    """Ends a training whose weights have become NaN, however long it is until the next file would show it."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises: TrainingError."""
        loss = pl_module.last_loss if isinstance(pl_module, TrainingModule) else None
        if loss is not None and not loss.isfinite().all():
            check_finite({"state_dict": pl_module.state_dict()}, f"epoch {trainer.current_epoch}")


class NewRates(Callback):
    """Lets a changed learning rate count from the batch that training is continued at.

    A checkpoint holds the rates of its time, in the optimizers and in the schedules. Where there is a schedule, its
    base rates become those that the module was made with, and the rates of now change by the same factor. An optimizer
    without one has its rate multiplied by ``ratio``, new to old in the spec.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._made: list[list[float]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # the optimizers are as the module made them: the checkpoint's state comes after this
        self._made = [[g.get("initial_lr", g["lr"]) for g in made.param_groups] for made in trainer.optimizers]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for made, optimizer in zip(self._made, trainer.optimizers, strict=True):
            for base, group in zip(made, optimizer.param_groups, strict=True):
                group["lr"] *= _factor(base, group, self.ratio)
                if "initial_lr" in group:
                    group["initial_lr"] = base
        for config in trainer.lr_scheduler_configs:
            _rebase(config.scheduler)


def _factor(base: float, group: dict[str, Any], ratio: float) -> float:
    before = group.get("initial_lr")
    return base / before if before else ratio


def _rebase(schedule: Any) -> None:
    """Take the base rates from the optimizer, here and in the schedules that this one is made of."""
    groups = schedule.optimizer.param_groups
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [group["initial_lr"] for group in groups]
    schedule._last_lr = [group["lr"] for group in groups]
    for part in getattr(schedule, "_schedulers", ()):
        _rebase(part)
