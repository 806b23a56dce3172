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
from fiducial.errors import CheckpointError, Problem, TrainingError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Kpis, Outputs, split
from fiducial.redact import redact
from fiducial.run.console import LOGGER
from fiducial.spec.common import CompileMode
from fiducial.training.compiled import compile_training
from fiducial.training.features import FeatureCache
from fiducial.training.mean import MeanLoss
from fiducial.training.policy import TrainerPolicy

__all__ = ["MAX_SKIPPED", "TrainingModule", "TrainingPlan"]

MAX_SKIPPED = 20
"""Steps in a row without finite gradients that end a training; more than a scale for float16 takes to be found."""


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
    on_host: ClassVar[frozenset[str]] = frozenset()
    """Entries of a batch that stay on the CPU, as :attr:`fiducial.prediction.Evaluator.on_host`."""
    compiled_calls: ClassVar[Mapping[str, str]] = {"model": "forward"}
    """For ``train.compile``: methods that steps call, each one graph, by the names of their modules in this one."""

    def __init__(self, plan: TrainingPlan, *, evaluators: Mapping[Stage, Evaluator[Any]] | None = None) -> None:
        super().__init__()
        self.plan, self.evaluators = plan, dict(evaluators or {})
        self.policy = TrainerPolicy()
        self.is_compiled = False
        self.features: FeatureCache | None = None
        """Where batches name their pictures by keys: what is kept of them."""
        self.last_loss: Tensor | None = None
        """Of the latest training batch, to be shown."""
        self._losses: dict[Stage, MeanLoss] = {"train": MeanLoss(), "val": MeanLoss()}
        self._accumulating = self._in_backward = False
        self._skipped = 0
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
        # not for Lightning's bar, which would read it in every step; ours asks for `last_loss` when it is drawn
        self.log(self.loss_name, self.last_loss, on_step=True, on_epoch=True, batch_size=size)
        self._losses["train"].update(self.last_loss, size)
        if outputs is not None and batch is not None and "train" in self.evaluators:
            self.evaluators["train"].update(outputs, batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        outputs, loss = self.evaluate_batch(batch)
        if loss is not None:
            self._losses["val"].update(loss.detach(), len(next(iter(outputs.values()))))
        if "val" in self.evaluators:
            self.evaluators["val"].update(outputs, batch, source=dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if not self.on_host:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        moved, kept = split(batch, self.on_host)
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def compile_networks(self, mode: CompileMode | bool = True) -> None:
        """Let ``torch.compile`` compile what steps call; see :mod:`fiducial.training.compiled`."""
        self.is_compiled = True
        for network, call in self.compiled_calls.items():
            compile_training(self.get_submodule(network), call, mode)

    def on_train_epoch_end(self) -> None:
        if self.features is not None:
            LOGGER.info("epoch %d: %s", self.current_epoch, self.features.report())

    def teardown(self, stage: str) -> None:
        if self.features is not None:
            self.features.close()

    # --- optimising by hand ---------------------------------------------------------------------------------------

    def optimize(self, loss: Tensor, batch_idx: int) -> bool:
        """Backward pass of a batch; step all optimizers when ``policy.accumulate`` batches are together.

        For ``automatic_optimization = False``, where Lightning refuses to accumulate and to clip: the gradient of each
        optimizer is clipped by itself, as Lightning does elsewhere. The last batches of
        an epoch step however few they are. There is no step where a gradient is not finite, on any rank. Returns
        whether the weights have changed.

        Raises: TrainingError after :data:`MAX_SKIPPED` steps in a row that could not be made.
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
        stepped = self._clip_and_step(optimizers)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self._accumulating = False
        self._skipped = 0 if stepped else self._skipped + 1
        if not stepped:
            self._tell_skipped(batch_idx)
        return stepped

    def _clip_and_step(self, optimizers: list[Any]) -> bool:
        scale, limit = self._gradient_scale(), self.policy.gradient_clip
        norms = [_clip(optimizer, None if limit is None else limit * scale) for optimizer in optimizers]
        # whether the weights change decides what comes next: the one value that a step waits for
        if self._scaler() is None and not torch.stack(norms).isfinite().all():
            return False
        for optimizer in optimizers:
            optimizer.step()  # under 16-mixed the scaler looks for itself, and lowers the scale where it does not step
        return self._gradient_scale() >= scale

    def _tell_skipped(self, batch_idx: int) -> None:
        if self._skipped >= MAX_SKIPPED:
            found = f"diverged: {self._skipped} steps in a row have gradients that are not finite"
            raise TrainingError(
                "training", found, "use a lower learning rate, or bfloat16 or 32 bits where it is float16"
            )
        say = LOGGER.warning if self._scaler() is None else LOGGER.info  # the scale is found by trying
        say("epoch %d, batch %d: gradients are not finite, no step", self.current_epoch, batch_idx)

    def _scaler(self) -> Any:
        """What scales the gradients under 16-mixed; None elsewhere."""
        return None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)

    def _gradient_scale(self) -> float:
        scaler = self._scaler()
        return 1.0 if scaler is None else float(scaler.get_scale())

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
            scale = self._gradient_scale()
            gradients = {name: p.grad / scale for name, p in self.named_parameters() if p.grad is not None}
            if self._scaler() is None or all(gradient.isfinite().all() for gradient in gradients.values()):
                checkpoint[GRADIENTS] = gradients  # under 16-mixed what is infinite is no divergence: it makes no step
            if self._in_backward:
                LOGGER.warning("stopped within a backward pass: the gradients kept for the next step are not exact")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises: CheckpointError naming the spec keys that have changed since the run to continue."""
        problems = list(self.plan.explain(checkpoint))
        if problems:
            raise CheckpointError.of(problems)
        self._restored = checkpoint.get(GRADIENTS) or {}

    def on_train_start(self) -> None:
        scale = self._gradient_scale()
        for name, parameter in self.named_parameters():
            if name in self._restored:
                parameter.grad = self._restored[name].to(parameter.device, parameter.dtype) * scale
        self._accumulating, self._restored = bool(self._restored), {}

    def on_before_backward(self, loss: Tensor) -> None:
        self._in_backward = True

    def on_after_backward(self) -> None:
        self._in_backward, self._accumulating = False, True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # of automatic optimisation: the backward pass is in its closure
        self._accumulating = False


def _clip(optimizer: Any, limit: float | None) -> Tensor:
    """The norm of an optimizer's gradient, which is shortened to ``limit`` where there is one."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if limit is not None:
        return torch.nn.utils.clip_grad_norm_(trained, limit)
    return torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
