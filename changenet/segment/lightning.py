"""Training loop of the segment network. It holds no math: that is losses.py and metrics.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from changenet.segment.counts import IGNORED
from changenet.segment.data import SceneBatch
from changenet.segment.losses import Loss, multi_scale
from changenet.segment.metrics import confusion, summary
from changenet.segment.model import ChangeSegmenter, Predictions, average_predictions
from changenet.training import ChangeNetModule, TrainingPlan
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


class SegmentModule(ChangeNetModule):
    """Trains a segmenter.

    ``scale_weights``: of the five predictions in the loss, coarsest first; None trains on the last alone.
    """

    tao_model = "visual_changenet_segment"
    model: ChangeSegmenter

    def __init__(
        self,
        model: ChangeSegmenter,
        plan: TrainingPlan,
        *,
        num_classes: int,
        loss: Loss,
        scale_weights: Sequence[float] | None,
        hyper_parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, plan, hyper_parameters=hyper_parameters)
        self.num_classes, self.pixel_loss, self.scale_weights = num_classes, loss, scale_weights
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

    def preview(self, batch: SceneBatch) -> dict[str, Tensor]:
        """The first pair of a batch in the colours of its files and its mask, ignored pixels grey, for TensorBoard.

        ``(3, H, W)``, the mask ``(1, H, W)``, in 0..1.
        """
        before, after = (self.plan.normalization.undo(image) for image in (batch["A"][0], batch["B"][0]))
        label_HW = cast(Tensor, batch["L"])[0].cpu()  # type: ignore[typeddict-item]  # training has masks
        level_HW = label_HW / (self.num_classes - 1)
        return {"before": before, "after": after, "mask": torch.where(label_HW == IGNORED, 0.5, level_HW)[None]}
