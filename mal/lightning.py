"""Training loop of student and teacher. It holds no math: that is training.py, losses.py and schedule.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Outputs
from fiducial.training.module import TrainingModule, TrainingPlan
from fiducial.training.optim import fused
from mal.data import IMAGENET
from mal.evaluator import BoxEvaluator
from mal.model import MaskNetwork
from mal.predictor import BoxLabeler
from mal.schedule import CosineSchedule
from mal.training import Objective, ema_update

__all__ = ["MalModule"]


class MalModule(TrainingModule):
    """Trains ``student`` by gradient and ``teacher`` as its moving average, with any Lightning Trainer.

    The names are part of the checkpoint's keys. ``labeler`` says which of them validation looks at. ``optimizer``: what
    :class:`torch.optim.AdamW` takes. ``clean_crf``: the mean field follows the picture's own colours.
    """

    tao_model = "mal"
    on_host = BoxEvaluator.on_host
    loss_name = "train/loss"
    compiled_calls = {
        f"{who}.{part}": "forward" for who in ("student", "teacher") for part in ("backbone", "mask_head")
    }
    """What is between them depends on the sizes of the boxes."""

    def __init__(
        self,
        student: MaskNetwork,
        teacher: MaskNetwork,
        plan: TrainingPlan | None = None,
        *,
        schedule: CosineSchedule,
        objective: Objective | None = None,
        optimizer: Mapping[str, Any] | None = None,
        momentum: float = 0.996,
        clean_crf: bool = False,
        labeler: BoxLabeler | None = None,
        evaluators: Mapping[Stage, BoxEvaluator] | None = None,
    ) -> None:
        super().__init__(plan or TrainingPlan(), evaluators=evaluators)
        self.automatic_optimization = False
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.schedule, self.objective, self.momentum = schedule, objective or Objective(), momentum
        self.optimizer_arguments = dict(optimizer or {})
        self.clean_crf = clean_crf
        # a list, so that its networks do not become parts of this module a second time
        self._labeler = [labeler or BoxLabeler([student])]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        area = batch["area"]
        student = self.student(batch["image"], area)
        with torch.no_grad():
            teacher = self.teacher(batch["clean"], area)
        image = batch["clean"] if self.clean_crf else batch["image"]
        parts = self.objective(student, teacher, image, batch["boxmask"], epoch=self.current_epoch, step=batch_idx)
        if self.optimize(parts.total, batch_idx):
            # TAO-compat: the rate of this place is that of the next step; see CosineSchedule
            self._set_rate(self.schedule.at(self.current_epoch + batch_idx / self.trainer.num_training_batches))
            ema_update(_averaged(self.teacher), _averaged(self.student), momentum=self.momentum)
        self._log_parts({"train/loss_mil": parts.mil, "train/loss_crf": parts.crf}, len(area))
        self.track(parts.total, size=len(area))

    def evaluate_batch(self, batch: Batch) -> tuple[Outputs, None]:
        return self._labeler[0].outputs(batch), None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = list(self.student.parameters())
        kind = torch.optim.AdamW
        return kind(trained, lr=self.schedule.peak, **self.optimizer_arguments, **fused(kind, trained))

    def train(self, mode: bool = True) -> MalModule:
        super().train(mode)
        self.teacher.eval()
        return self

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        return {"crop": IMAGENET.undo(batch["image"][0]), "box": batch["boxmask"][0].expand(3, -1, -1)}

    def _set_rate(self, rate: float) -> None:
        found = self.optimizers()
        for group in found.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate

    def _log_parts(self, values: Mapping[str, Tensor], size: int) -> None:
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.log_dict({**{name: value.detach() for name, value in values.items()}, "lr": rate}, batch_size=size)


def _averaged(network: MaskNetwork) -> list[Tensor]:
    """All that is in a checkpoint but counts: parameters, and the statistics of FAN's batch norms."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]
