"""Training loop of the classify networks. It holds no math: that is losses.py and metrics.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from changenet.classify.data import PairBatch
from changenet.classify.evaluator import PairEvaluator
from changenet.classify.losses import contrastive_loss
from fiducial.data.normalization import Normalization
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Outputs
from fiducial.training.features import FeatureCache
from fiducial.training.module import TrainingModule, TrainingPlan
from fiducial.training.optim import OptimizerRecipe

__all__ = ["ClassifyModule"]


class ClassifyModule(TrainingModule):
    """Trains a classifier, with any Lightning Trainer.

    ``model``: :func:`changenet.build_classifier`'s; named so because the name is part of the checkpoint's keys.
    ``learnable``: whether it gives logits, trained with cross entropy weighted by ``cls_weight``, or distances, trained
    with the contrastive loss of ``contrastive_margin``. ``evaluators`` of ``train`` and ``val`` make the metrics.
    ``features``: where those of a frozen backbone are kept, of batches that name their pictures.
    """

    tao_model = "visual_changenet_classify"
    on_host = PairEvaluator.on_host

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan | None = None,
        recipe: OptimizerRecipe | None = None,
        *,
        learnable: bool,
        cls_weight: Sequence[float] = (1.0, 10.0),
        contrastive_margin: float = 2.0,
        compat_tao: bool = False,
        evaluators: Mapping[Stage, PairEvaluator] | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__(plan or TrainingPlan(), evaluators=evaluators)
        self.features = features
        self.model, self.recipe = model, recipe or OptimizerRecipe()
        # TAO's key `criterion.weight` exists for cross entropy only
        self.criterion = nn.CrossEntropyLoss(torch.tensor(list(cls_weight))) if learnable else None
        self.contrastive_margin, self.compat_tao = contrastive_margin, compat_tao

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        outputs, loss = self.evaluate_batch(batch)
        self.track(loss, size=len(batch["label"]), outputs=outputs, batch=batch)
        return loss

    def evaluate_batch(self, batch: Batch) -> tuple[Outputs, Tensor]:
        output = self._output(batch)
        return {"output": output}, self.loss(output, batch["label"])

    def _output(self, batch: Batch) -> Tensor:
        """The network's output, of goldens that rows share once, and of what is kept where pictures have keys."""
        place = batch.get("golden_place")
        output: Tensor
        if self.features is not None and "keys" in batch:
            network: Any = self.model
            of_test = batch["test_place"]
            found = self.features.features(batch, network.features, of_test.device)
            test, golden = (tuple(x.index_select(0, rows) for x in found) for rows in (of_test, batch["golden_rows"]))
            output = network.from_features(test, golden, place)
        elif place is None or self.is_compiled:  # a graph for every number of different goldens costs more
            output = self.model(batch["test"], batch["golden"])
        else:
            output = self.model(batch["test"], batch["golden"].index_select(0, batch["golden_rows"]), place)
        return output

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch's raw output: weighted cross entropy of logits, or contrastive of distances."""
        if self.criterion is not None:
            loss: Tensor = self.criterion(output, label)
            return loss
        return contrastive_loss(output, label, margin=self.contrastive_margin, broadcast=self.compat_tao)

    def configure_optimizers(self) -> Any:
        return self.recipe.configure(self.parameters())

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The first pair of a batch in the colours of its files, ``(3, H, W)`` in 0..1 (TensorBoard, TAO's names)."""
        if "keys" in batch:
            pictures = dict(zip(batch["picture_place"], batch.get("pictures", ()), strict=True))
            of_golden = batch["golden_rows"][batch["golden_place"][0]]
            test, golden = (pictures[int(place)] for place in (batch["test_place"][0], of_golden))
        else:
            test, golden = batch["test"][0], batch["golden"][0]
        named = {"compare_sample": test}
        if golden.ndim == 3:
            named["golden_sample"] = golden
        else:
            named |= {f"golden_sample{i}": image for i, image in enumerate(golden)}
        undo = Normalization.of(self.plan.card).undo
        return {name: undo(image) for name, image in named.items()}
