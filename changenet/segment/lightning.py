"""Training loop of the segment network. It holds no math: that is losses.py and metrics.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from changenet.segment.counts import IGNORED
from changenet.segment.data import SceneBatch
from changenet.segment.evaluator import SegmentEvaluator
from changenet.segment.losses import Loss, multi_scale, pixel_loss
from changenet.segment.model import FINAL, ChangeSegmenter, Predictions, average_predictions
from fiducial.data.normalization import Normalization
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Outputs
from fiducial.training.features import FeatureCache
from fiducial.training.module import TrainingModule, TrainingPlan
from fiducial.training.optim import OptimizerRecipe

__all__ = ["SegmentModule"]


class SegmentModule(TrainingModule):
    """Trains a segmenter, with any Lightning Trainer.

    ``model``: :func:`changenet.build_segmenter`'s; named so because the name is part of the checkpoint's keys.
    ``loss``: of the logits of one scale and the mask; None is cross entropy. ``scale_weights``: of the five predictions
    in the loss, coarsest first; None trains on the last alone. ``evaluators`` of ``train`` and ``val`` measure.
    ``features``: where those of a frozen backbone are kept, of batches whose images have keys.
    """

    tao_model = "visual_changenet_segment"
    on_host = SegmentEvaluator.on_host
    compiled_calls = {"model": "predictions"}

    def __init__(
        self,
        model: ChangeSegmenter,
        plan: TrainingPlan | None = None,
        recipe: OptimizerRecipe | None = None,
        *,
        num_classes: int = 2,
        loss: Loss | None = None,
        scale_weights: Sequence[float] | None = None,
        evaluators: Mapping[Stage, SegmentEvaluator] | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__(plan or TrainingPlan(), evaluators=evaluators)
        self.features = features
        self.model, self.recipe = model, recipe or OptimizerRecipe()
        self.num_classes, self.scale_weights = num_classes, scale_weights
        self.pixel_loss: Loss = loss or pixel_loss("ce")

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        predictions = self._predictions(batch, auxiliary=self.scale_weights is not None)
        loss = self.loss(predictions, _label(batch))
        self.track(loss, size=len(batch["index"]), outputs={FINAL: predictions[-1]}, batch=batch)
        return loss

    def evaluate_batch(self, batch: Batch) -> tuple[Outputs, Tensor]:
        averaged = self.model.average_scales
        multi = self.scale_weights is not None
        predictions = self._predictions(batch, auxiliary=multi or averaged)
        result = average_predictions(predictions) if averaged else predictions[-1]
        return {FINAL: result}, self.loss(predictions, _label(batch))

    def _predictions(self, batch: Any, *, auxiliary: bool) -> Predictions:
        """The network's predictions, of what is kept where images have keys."""
        if self.features is None or "keys" not in batch:
            return self.model.predictions(batch["A"], batch["B"], auxiliary=auxiliary)
        places = [batch[f"{role}_place"] for role in ("A", "B")]
        found = self.features.features(batch, self.model.features, places[0].device)
        before, after = (tuple(part.index_select(0, place) for part in found) for place in places)
        return self.model.from_features(before, after, auxiliary=auxiliary)

    def loss(self, predictions: Predictions, label_BHW: Tensor) -> Tensor:
        """The loss of a batch's predictions: of all scales, weighted, or of the last."""
        if self.scale_weights is None:
            return self.pixel_loss(predictions[-1], label_BHW)
        return multi_scale(predictions, label_BHW, self.scale_weights, self.pixel_loss)

    def configure_optimizers(self) -> Any:
        return self.recipe.configure(self.parameters())

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The first pair of a batch in the colours of its files and its mask, ignored pixels grey, for TensorBoard.

        ``(3, H, W)``, the mask ``(1, H, W)``, in 0..1.
        """
        undo = Normalization.of(self.plan.card).undo
        label_HW = _label(batch)[0].cpu()
        level_HW = label_HW / (self.num_classes - 1)
        mask = torch.where(label_HW == IGNORED, 0.5, level_HW)[None]
        if "keys" in batch:
            images = dict(zip(batch["picture_place"], batch["pictures"], strict=True))
            before, after = (images[int(batch[f"{role}_place"][0])] for role in ("A", "B"))
        else:
            before, after = batch["A"][0], batch["B"][0]
        return {"before": undo(before), "after": undo(after), "mask": mask}


def _label(batch: Batch | SceneBatch) -> Tensor:
    """The masks of a batch, which are of one size in training and validation."""
    return cast(Tensor, batch["L"])
