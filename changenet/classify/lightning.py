"""Training loop of the classify networks. It holds no math: that is losses.py and metrics.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from changenet.classify.data import PairBatch
from changenet.classify.losses import contrastive_loss
from changenet.classify.metrics import classify_report
from changenet.classify.outputs import PairEvaluator
from changenet.training import ChangeNetModule, TrainingPlan

TAO_MARGIN = 2.0
"""What TAO's training and validation metrics use, whatever the spec says."""


class ClassifyModule(ChangeNetModule):
    """Trains a classifier. ``groups`` are the component types of the validation rows, for metrics per type."""

    tao_model = "visual_changenet_classify"

    def __init__(
        self,
        model: nn.Module,
        plan: TrainingPlan,
        *,
        learnable: bool,
        cls_weight: Sequence[float],
        contrastive_margin: float,
        eval_margin: float,
        compat_tao: bool = False,
        groups: Sequence[str] | None = None,
        hyper_parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, plan, hyper_parameters=hyper_parameters)
        # TAO's key `criterion.weight` exists for cross entropy only
        self.criterion = nn.CrossEntropyLoss(torch.tensor(list(cls_weight))) if learnable else None
        self.contrastive_margin, self.compat_tao = contrastive_margin, compat_tao
        self.eval_margin = TAO_MARGIN if compat_tao else eval_margin
        self.groups = groups
        self.evaluators = {"train": PairEvaluator(), "val": PairEvaluator()}

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        output = self.model(batch["test"], batch["golden"])
        loss = self.loss(output, batch["label"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(output))
        self.evaluators["train"].update(output, batch, loss)
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        output = self.model(batch["test"], batch["golden"])
        self.evaluators["val"].update(output, batch, self.loss(output, batch["label"]))

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch's raw output: weighted cross entropy of logits, or contrastive of distances."""
        if self.criterion is not None:
            loss: Tensor = self.criterion(output, label)
            return loss
        return contrastive_loss(output, label, margin=self.contrastive_margin, broadcast=self.compat_tao)

    def epoch_kpis(self, stage: str) -> dict[str, float]:
        """The stage's metrics since the last call, over all ranks (a collective call)."""
        results = self.evaluators[stage].finish()
        groups = self.groups if stage == "val" and results.row.max() < len(self.groups or ()) else None
        names = None if groups is None else [groups[row] for row in results.row.tolist()]
        report = classify_report(results.score, results.label, self.eval_margin, groups=names)
        kpis = {f"{stage}_loss": float("nan") if results.loss is None else results.loss}
        return kpis | report.kpis("train" if stage == "train" else "val", per_group=names is not None)

    def preview(self, batch: PairBatch) -> dict[str, Tensor]:
        """The first pair of a batch in the colours of its files, ``(3, H, W)`` in 0..1 (TensorBoard, TAO's names)."""
        golden = batch["golden"][0]
        named = {"compare_sample": batch["test"][0]}
        if golden.ndim == 3:
            named["golden_sample"] = golden
        else:
            named |= {f"golden_sample{i}": image for i, image in enumerate(golden)}
        return {name: self.plan.normalization.undo(image) for name, image in named.items()}
