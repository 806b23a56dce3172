"""What both tasks give to the shared actions alike. Light: the parts are imported when used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fiducial.task import ResumeRules, Task
from fiducial.training.policy import TrainerPolicy

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec
    from fiducial.errors import Problem

__all__ = ["ChangeNetTask"]


class ChangeNetTask(Task["ExperimentSpec"]):
    """One task of Visual ChangeNet."""

    network = "visual_changenet"
    title = "Visual ChangeNet"
    memory_savers = (
        "set train.precision=bf16-mixed",
        "model.backbone.activation_checkpointing=true",
        "or freeze the backbone",
    )
    resume = ResumeRules(
        also_free=("evaluate.", "train.num_gpus", "train.gpu_ids", "train.num_nodes"),
        kept=tuple(f"train.optim.{name}" for name in ("weight_decay", "momentum", "betas")),
        rates=("train.optim.lr",),
        fixed=("train.optim.optim",),
    )

    def spec_model(self) -> type[ExperimentSpec]:
        from changenet.config import ExperimentSpec

        return ExperimentSpec

    def policy(self, spec: ExperimentSpec) -> TrainerPolicy:
        train = spec.train
        return TrainerPolicy(
            precision=train.precision,
            sync_batchnorm=train.sync_batchnorm,
            find_unused_parameters=True,  # TAO's layouts keep layers that no loss reaches
            pictures_every=train.tensorboard.infrequent_logging_frequency if train.tensorboard.enabled else 0,
        )

    def check_weights(self, spec: ExperimentSpec) -> Iterable[Problem]:
        from fiducial.training.checks import check_backbone_weights

        return check_backbone_weights(spec.model.backbone, spec.train.pretrained_model_path)

    def monitor(self, train: Any) -> tuple[str, str]:
        kept = train.checkpointer
        name = kept.monitor or train.optim.monitor_name or self.metrics.default
        return name, kept.mode or self.metrics.direction(name)
