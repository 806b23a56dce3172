"""Training loop of the segment network. It holds no math: that is losses.py and metrics.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from changenet.segment.data import SceneBatch
from changenet.segment.losses import Loss, multi_scale
from changenet.segment.metrics import confusion, summary
from changenet.segment.model import ChangeSegmenter, Predictions, average_predictions
from fiducial.errors import CheckpointError, Problem
from fiducial.optim import build_optimizer, build_schedule
from fiducial.run.ranks import gather


class Tally:
    """Adds up confusion matrices and losses of batches, on their device, without waiting for it."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._matrices: list[Tensor] = []
        self._losses: list[tuple[Tensor, int]] = []

    def update(self, logit_BKHW: Tensor, label_BHW: Tensor, loss: Tensor) -> None:
        """Count a batch."""
        matrix_KK = confusion(logit_BKHW.detach().argmax(1), label_BHW, self.num_classes).sum(0)
        self._matrices = [torch.stack([*self._matrices, matrix_KK]).sum(0)]
        self._losses.append((loss.detach(), len(label_BHW)))

    def finish(self, stage: str) -> dict[str, float]:
        """The stage's metrics since the last call, over all ranks (a collective call)."""
        losses = [(float(loss), size) for loss, size in self._losses]
        matrices = [matrix.cpu().numpy() for matrix in self._matrices]
        self._matrices, self._losses = [], []
        ranks = gather((matrices, losses))
        matrix = np.sum([m for matrices, _ in ranks for m in matrices], axis=0)
        everywhere = [entry for _, losses in ranks for entry in losses]
        total = sum(size for _, size in everywhere)
        mean = sum(loss * size for loss, size in everywhere) / total if total else float("nan")
        return {f"{stage}_loss": mean, **{f"{stage}_{name}": value for name, value in summary(matrix).items()}}


class SegmentModule(pl.LightningModule):
    """Trains ``model``, named so because the name is part of the checkpoint's keys.

    ``scale_weights``: of the five predictions in the loss, coarsest first; None trains on the last alone.
    ``hyper_parameters`` is the spec as plain data, ``record`` what else the checkpoint should say of itself.
    ``explain`` finds what in the spec does not fit a checkpoint to continue from.
    """

    def __init__(
        self,
        model: ChangeSegmenter,
        *,
        num_classes: int,
        loss: Loss,
        scale_weights: Sequence[float] | None,
        optim: Mapping[str, Any],
        num_epochs: int,
        hyper_parameters: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        tao_model_type: str | None = None,
        pictures: Callback | None = None,
        explain: Callable[[Mapping[str, Any]], Iterable[Problem]] = lambda checkpoint: (),
    ) -> None:
        super().__init__()
        self.model = model
        self.pixel_loss, self.scale_weights = loss, scale_weights
        self.optim, self.num_epochs = dict(optim), num_epochs
        self.record, self.tao_model_type = dict(record or {}), tao_model_type
        self.pictures, self.explain = pictures, explain
        self.save_hyperparameters(dict(hyper_parameters or {}), logger=False)
        self.tallies = {stage: Tally(num_classes) for stage in ("train", "val")}

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch["A"]))
        return loss

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        self._step(batch, "val")

    def _step(self, batch: SceneBatch, stage: str) -> Tensor:
        averaged = self.model.average_scales and stage == "val"
        multi = self.scale_weights is not None
        predictions = self.model.predictions(batch["A"], batch["B"], auxiliary=multi or averaged)
        label_BHW = cast(Tensor, batch["L"])  # type: ignore[typeddict-item]  # all of one size here
        loss = self.loss(predictions, label_BHW)
        result = average_predictions(predictions) if averaged else predictions[-1]
        self.tallies[stage].update(result, label_BHW, loss)
        return loss

    def loss(self, predictions: Predictions, label_BHW: Tensor) -> Tensor:
        """The loss of a batch's predictions: of all scales, weighted, or of the last."""
        if self.scale_weights is None:
            return self.pixel_loss(predictions[-1], label_BHW)
        return multi_scale(predictions, label_BHW, self.scale_weights, self.pixel_loss)

    def epoch_kpis(self, stage: str) -> dict[str, float]:
        """The stage's metrics since the last call, over all ranks (a collective call)."""
        kpis = self.tallies[stage].finish(stage)
        if stage == "val":  # TAO's unprefixed names, for those who monitor them
            plain = {name.removeprefix("val_"): value for name, value in kpis.items() if name != "val_loss"}
            self.log_dict(plain, sync_dist=False, batch_size=1)
        return kpis

    def configure_callbacks(self) -> list[Callback]:
        return [self.pictures] if self.pictures else []

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optim["optim"], self.parameters(), **self.optim["arguments"])
        schedule = build_schedule(optimizer, self.optim["policy"], self.num_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises: CheckpointError naming the spec keys that have changed since the run to continue."""
        problems = list(self.explain(checkpoint))
        if problems:
            raise CheckpointError.of(problems)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tao_model"] = "visual_changenet_segment"
        if self.tao_model_type:
            checkpoint["tao_model_type"] = self.tao_model_type
        checkpoint["fiducial"] = self.record
