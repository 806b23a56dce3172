"""The Lightning module of every training: what the shared loop, reports and checkpoints ask of a network."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor

from fiducial.checkpoints.finite import GRADIENTS
from fiducial.deploy.card import ENTRY, ModelCard
from fiducial.errors import CheckpointError, Problem
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Kpis, Outputs
from fiducial.redact import redact
from fiducial.run.console import LOGGER
from fiducial.training.mean import MeanLoss
from fiducial.training.policy import TrainerPolicy

__all__ = ["TrainingModule", "TrainingPlan"]


@dataclass(frozen=True)
class TrainingPlan:
    """What a training knows beside its network.

    ``card`` goes into every checkpoint, ``hyper_parameters`` (the spec as plain data) too, without its secrets.
    ``weights``: in words, what was loaded before. ``tao_model_type``: TAO's tag of some architectures. ``explain`` says
    which spec keys the content of a checkpoint to continue from contradicts.
    """

    card: ModelCard = field(default_factory=ModelCard)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    tao_model_type: str | None = None
    explain: Callable[[Mapping[str, Any]], Iterable[Problem]] = lambda checkpoint: ()


class TrainingModule(pl.LightningModule):
    """Base of the modules that ``train`` runs; usable with any Lightning Trainer.

    A subclass writes ``training_step`` (calling :meth:`track`, and :meth:`optimize` where it optimises by hand),
    :meth:`evaluate_batch` and ``configure_optimizers``. ``evaluators`` turn the outputs of a stage into its KPIs;
    without one a stage has its loss alone, where it has any.
    """

    tao_model: ClassVar[str] = ""
    """What TAO calls the network in a checkpoint; empty where it writes nothing."""
    loss_name: ClassVar[str] = "train_loss"
    """Name of the loss of training among the logged scalars."""

    def __init__(self, plan: TrainingPlan, *, evaluators: Mapping[Stage, Evaluator[Any]] | None = None) -> None:
        super().__init__()
        self.plan, self.evaluators = plan, dict(evaluators or {})
        self.policy = TrainerPolicy()
        self.last_loss: Tensor | None = None
        """Of the latest training batch, to be shown."""
        self._losses: dict[Stage, MeanLoss] = {"train": MeanLoss(), "val": MeanLoss()}
        self._accumulating = self._in_backward = False
        self._restored: dict[str, Tensor] = {}
        self.save_hyperparameters(redact(plan.hyper_parameters), logger=False)

    @abstractmethod
    def evaluate_batch(self, batch: Batch) -> tuple[Outputs, Tensor | None]:
        """The outputs that the evaluator takes, and the loss where the network has one in validation."""

    def preview(self, batch: Batch) -> Mapping[str, Tensor]:
        """Pictures of a training batch for TensorBoard, ``(C, H, W)`` in 0..1, by name."""
        return {}

    def kpis(self, stage: Stage) -> Kpis:
        """The numbers of ``train`` or ``val`` since the last call, over all ranks (a collective call)."""
        kpis: Kpis = {}
        loss = self._losses[stage].finish()
        if loss is not None:
            kpis[f"{stage}_loss"] = loss
        if stage in self.evaluators:
            evaluator = self.evaluators[stage]
            kpis |= evaluator.kpis(evaluator.finish())
        return kpis

    def track(self, loss: Tensor, *, size: int, outputs: Outputs | None = None, batch: Batch | None = None) -> None:
        """Take the loss of a training batch of ``size`` items; the outputs, where training has metrics of its own."""
        self.last_loss = loss.detach()
        self.log(self.loss_name, self.last_loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=size)
        self._losses["train"].update(self.last_loss, size)
        if outputs is not None and batch is not None and "train" in self.evaluators:
            self.evaluators["train"].update(outputs, batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        outputs, loss = self.evaluate_batch(batch)
        if loss is not None:
            self._losses["val"].update(loss.detach(), len(next(iter(outputs.values()))))
        if "val" in self.evaluators:
            self.evaluators["val"].update(outputs, batch, source=dataloader_idx)

    # --- optimising by hand ---------------------------------------------------------------------------------------

    def optimize(self, loss: Tensor, batch_idx: int) -> bool:
        """Backward pass of a batch; clip and step all optimizers when ``policy.accumulate`` batches are together.

        For ``automatic_optimization = False``, where Lightning refuses to accumulate and to clip. The last batches of
        an epoch step however few they are. Returns whether the optimizers stepped.
        """
        every = self.policy.accumulate
        steps = (batch_idx + 1) % every == 0 or batch_idx + 1 == self.trainer.num_training_batches
        strategy = self.trainer.strategy
        waits = not steps and isinstance(strategy, ParallelStrategy)
        with strategy.block_backward_sync() if waits else contextlib.nullcontext():  # type: ignore[attr-defined]
            self.manual_backward(loss / every)
        if not steps:
            return False
        found = self.optimizers()
        optimizers: list[Any] = found if isinstance(found, list) else [found]
        if self.policy.gradient_clip is not None:
            # gradients are scaled under 16-mixed, and so must be their limit
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            limit = self.policy.gradient_clip * (scaler.get_scale() if scaler is not None else 1.0)
            trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, limit)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._accumulating = False
        return True

    def step_schedules(self) -> None:
        """Step all learning-rate schedules, which nobody does for a module that optimises by hand."""
        found = self.lr_schedulers()
        for schedule in found if isinstance(found, list) else [found]:
            schedule.step()  # type: ignore[union-attr]

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tao_model:
            checkpoint["tao_model"] = self.tao_model
        if self.plan.tao_model_type:
            checkpoint["tao_model_type"] = self.plan.tao_model_type
        loaded = {"loaded_weights": self.plan.weights} if self.plan.weights else {}
        checkpoint[ENTRY] = {**self.plan.card.stamped().plain(), **loaded}
        if self._accumulating:  # in the middle of a step: what the batches before have contributed
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            checkpoint[GRADIENTS] = gradients
            if self._in_backward:
                LOGGER.warning("stopped within a backward pass: the gradients kept for the next step are not exact")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises: CheckpointError naming the spec keys that have changed since the run to continue."""
        problems = list(self.plan.explain(checkpoint))
        if problems:
            raise CheckpointError.of(problems)
        self._restored = checkpoint.get(GRADIENTS) or {}

    def on_train_start(self) -> None:
        for name, parameter in self.named_parameters():
            if name in self._restored:
                parameter.grad = self._restored[name].to(parameter.device, parameter.dtype)
        self._accumulating, self._restored = bool(self._restored), {}

    def on_before_backward(self, loss: Tensor) -> None:
        self._in_backward = True

    def on_after_backward(self) -> None:
        self._in_backward, self._accumulating = False, True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # of automatic optimisation: the backward pass is in its closure
        self._accumulating = False
