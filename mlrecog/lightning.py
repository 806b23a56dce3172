"""Training loop of trunk and embedder. It holds no math: that is losses.py, schedule.py and optimizers.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fiducial.data.normalization import Normalization
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Kpis, Outputs
from fiducial.run.console import LOGGER
from fiducial.training.module import TrainingModule, TrainingPlan
from mlrecog.evaluator import RecogEvaluator
from mlrecog.health import collapse, collapsed
from mlrecog.losses import TripletObjective
from mlrecog.model import Recognizer
from mlrecog.optimizers import PartOptimizer
from mlrecog.predictor import EMBEDDING

__all__ = ["RecogModule"]


class RecogModule(TrainingModule):
    """Trains a :class:`Recognizer` with any Lightning Trainer.

    ``self.model`` is part of the checkpoint's keys. ``trunk`` and ``embedder`` are their optimizers, ``factor`` gives
    the share of their rates in an epoch, all of them where it is None. ``frozen`` names parts that are not trained;
    with ``still`` their batch norms keep their statistics, too.
    """

    tao_model = "ml_recog"
    on_host = RecogEvaluator.on_host

    def __init__(
        self,
        network: Recognizer,
        plan: TrainingPlan | None = None,
        *,
        objective: TripletObjective | None = None,
        trunk: PartOptimizer | None = None,
        embedder: PartOptimizer | None = None,
        factor: Callable[[int], float] | None = None,
        frozen: tuple[str, ...] = (),
        still: bool = True,
        normalize: Normalization | None = None,
        evaluators: Mapping[Stage, RecogEvaluator] | None = None,
    ) -> None:
        super().__init__(plan or TrainingPlan(), evaluators=evaluators)
        self.automatic_optimization = False
        self.model, self.objective = network, objective or TripletObjective()
        self.settings = {"trunk": trunk or PartOptimizer(), "embedder": embedder or PartOptimizer()}
        self.factor, self.normalize = factor or (lambda epoch: 1.0), normalize
        self.frozen, self.still = frozen, still
        for part in frozen:
            getattr(network, part).requires_grad_(False)
        self._rates: list[list[float]] = []
        self._distance: Tensor | None = None
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen if self.still else ():
            getattr(self.model, part).eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._set_rates()
        embeddings, labels = self._across_ranks(self.model(batch["image"]), batch["label"])
        mined = self.objective(embeddings, labels)
        self.optimize(mined.loss, batch_idx)
        health = collapse(embeddings)
        self._distance = health.mean_distance
        self.log_dict(
            {
                "active_triplets": mined.active_share,
                "mean_distance": health.mean_distance,
                "embedding_spread": health.spread,
                **self._base_rates(),
            },
            batch_size=len(labels),
        )
        self.track(mined.loss, size=len(batch["label"]))

    def on_train_epoch_end(self) -> None:
        if self._distance is not None and (wrong := collapsed(float(self._distance))):
            LOGGER.warning("epoch %d: %s", self.current_epoch, wrong)

    def evaluate_batch(self, batch: Batch) -> tuple[Outputs, None]:
        return {EMBEDDING: self.model(batch["image"])}, None

    def kpis(self, stage: Stage) -> Kpis:
        kpis = super().kpis(stage)
        if stage == "train":
            kpis |= {name: f"{rate:.4e}" for name, rate in self._base_rates().items()}
        return kpis

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        made = [self.settings[part].build(getattr(self.model, part)) for part in ("trunk", "embedder")]
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in made]
        return made

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        return {} if self.normalize is None else {"picture": self.normalize.undo(batch["image"][0])}

    def _across_ranks(self, embeddings_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of all ranks, with gradients to each: every rank mines in the whole batch."""
        if self.trainer.world_size == 1:
            return embeddings_BD, labels_B
        everybody: Any = self.all_gather(embeddings_BD, sync_grads=True)
        labels: Any = self.all_gather(labels_B)
        return everybody.flatten(0, 1), labels.flatten()

    def _base_rates(self) -> dict[str, float]:
        factor = self.factor(self.current_epoch)
        return {f"{part}_base_lr": self.settings[part].base_lr * factor for part in ("trunk", "embedder")}

    def _set_rates(self) -> None:
        """From the spec and the epoch alone: a continued run may have begun with other rates."""
        found: Any = self.optimizers()
        factor = self.factor(self.current_epoch)
        for optimizer, rates in zip(found, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
