"""What both networks have in common when they are trained."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
from torch import nn

from changenet.normalization import Normalization
from fiducial.errors import CheckpointError, Problem
from fiducial.optim import build_optimizer, build_schedule
from fiducial.run.seeds import Position

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ChangeNetData", "ChangeNetModule", "TrainingPlan", "optimizer_options"]


@dataclass(frozen=True)
class TrainingPlan:
    """How a network is trained, whatever it compares.

    ``optim``: see :func:`optimizer_options`. ``normalization`` is that of the images; the checkpoint says it, and what
    ``record`` holds. ``explain`` says which spec keys the content of a checkpoint to continue from contradicts.
    """

    optim: Mapping[str, Any]
    num_epochs: int
    normalization: Normalization
    record: Mapping[str, Any] = field(default_factory=dict)
    tao_model_type: str | None = None
    explain: Callable[[Mapping[str, Any]], Iterable[Problem]] = lambda checkpoint: ()


class ChangeNetModule(pl.LightningModule):
    """Trains ``model``, named so because the name is part of the checkpoint's keys.

    ``hyper_parameters`` is the spec as plain data; its name, too, stands in the checkpoint.
    """

    tao_model: ClassVar[str]
    """What TAO calls the network in a checkpoint."""

    def __init__(
        self, model: nn.Module, plan: TrainingPlan, *, hyper_parameters: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self.record = {"mean": list(plan.normalization.mean), "std": list(plan.normalization.std), **plan.record}
        self.save_hyperparameters(dict(hyper_parameters or {}), logger=False)

    def configure_optimizers(self) -> Any:
        optim = self.plan.optim
        optimizer = build_optimizer(optim["optim"], self.parameters(), **optim["arguments"])
        schedule = build_schedule(optimizer, optim["policy"], self.plan.num_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises: CheckpointError naming the spec keys that have changed since the run to continue."""
        problems = list(self.plan.explain(checkpoint))
        if problems:
            raise CheckpointError.of(problems)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tao_model"] = self.tao_model
        if self.plan.tao_model_type:
            checkpoint["tao_model_type"] = self.plan.tao_model_type
        checkpoint["fiducial"] = self.record


class ChangeNetData(pl.LightningDataModule):
    """Knows where it stands: among the devices, and in a training that continues."""

    def ranks(self) -> tuple[int, int]:
        """Rank and world size: the number of this device, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def run_seed(self, seed: int) -> int:
        """``seed``; where it is negative, one drawn now for all devices."""
        if seed >= 0:
            return seed
        drawn = secrets.randbits(31)
        return drawn if self.trainer is None else int(self.trainer.strategy.broadcast(drawn))

    def position(self) -> tuple[int, int]:
        """The epoch and batch that training continues with."""
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        found = next((callback for callback in callbacks if isinstance(callback, Position)), None)
        return (found.epoch, found.batch) if found else (0, 0)


def optimizer_options(spec: ExperimentSpec) -> dict[str, Any]:
    """Names of the optimiser (``optim``) and the schedule (``policy``), and the optimiser's ``arguments``."""
    optim = spec.train.optim
    arguments: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "momentum": optim.momentum}
    if optim.betas is not None:
        arguments["betas"] = tuple(optim.betas)
    return {"optim": optim.optim, "policy": optim.policy, "arguments": arguments}
