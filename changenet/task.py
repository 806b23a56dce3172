"""What both tasks give to the shared actions alike. Light: the parts are imported when used."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.spec.shorthands import COMMON
from fiducial.task import ResumeRules, Task
from fiducial.training.policy import TrainerPolicy

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec
    from changenet.runtime import ChangeNetRuntime
    from fiducial.errors import Problem

__all__ = ["SHORTHANDS", "ChangeNetTask", "switched_off"]

SHORTHANDS = {
    **COMMON,
    "learning_rate": ("train.optim.lr",),
    "lr": ("train.optim.lr",),
    "weight_decay": ("train.optim.weight_decay",),
    "momentum": ("train.optim.momentum",),
    "optimizer": ("train.optim.optim",),
    "lr_policy": ("train.optim.policy",),
    "precision": ("train.precision",),
    "pretrained_model": ("train.pretrained_model_path",),
    "pretrained_backbone": ("model.backbone.pretrained_backbone_path",),
    "backbone": ("model.backbone.type",),
    "freeze_backbone": ("model.backbone.freeze_backbone",),
}
"""Of both tasks."""


def switched_off(section: Any, path: str, searched: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Augmentations of a section that are off, and stay so in a search."""
    for name in ("random_flip", "random_rotate", "random_color", "with_scale_random_crop"):
        switch = f"{path}.{name}.enable"
        if not getattr(section, name).enable and switch not in searched:
            yield f"{path}.{name}", f"{switch} is false"


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

    def unwrap(self, tree: dict[str, Any]) -> dict[str, Any]:
        from changenet.old_specs import renamed

        return renamed(tree)

    def policy(self, spec: ExperimentSpec) -> TrainerPolicy:
        train = spec.train
        return TrainerPolicy(
            precision=train.precision,
            sync_batchnorm=train.sync_batchnorm,
            find_unused_parameters=True,  # TAO's layouts keep layers that no loss reaches
            pictures_every=train.tensorboard.infrequent_logging_frequency if train.tensorboard.enabled else 0,
        )

    def check_weights(self, spec: ExperimentSpec, resume: Path | None = None) -> Iterable[Problem]:
        from fiducial.backbones.hub import local_weights
        from fiducial.training.checks import WEIGHTS_KEY, check_backbone_weights

        path, whole = spec.model.backbone.weights, spec.train.pretrained_model_path
        problems = [] if resume else list(check_backbone_weights(spec.model.backbone, whole))
        yield from problems
        if any(problem.level == "error" for problem in (*problems, *self.check_spec(spec, "train"))):
            return
        local = None if resume or whole or not path else local_weights(path, key=WEIGHTS_KEY)
        if resume or whole or local:
            yield from self.runtime(spec).check_weights(resume, local)

    def compared_by(self, spec: ExperimentSpec) -> list[str]:
        """The metrics that a search compares trainings by, the main one first."""
        main = spec.automl.metric if spec.automl.metric != "kpi" else self.monitor(spec.train)[0]
        return [main, *(objective.metric for objective in spec.automl.objectives)]

    def other_losses(self, spec: ExperimentSpec, *keys: str) -> dict[str, str]:
        """Of a search that compares losses, ``keys`` that change what a loss means, and why they are left alone."""
        loss = next((metric for metric in self.compared_by(spec) if metric in ("loss", "val_loss")), None)
        return dict.fromkeys(keys, f"{loss} means something else with each value of it") if loss else {}

    def unsearched(self, spec: ExperimentSpec, searched: frozenset[str], *, warm: bool = False) -> Mapping[str, str]:
        others = [task for task in ("classify", "segment") if task != self.name]
        dead = {f"{part}.{task}": f"task is {self.name}" for task in others for part in ("dataset", "model", "train")}
        if spec.train.optim.optim != "sgd" and "train.optim.optim" not in searched:
            dead["train.optim.momentum"] = f"{spec.train.optim.optim} has none"
        return dead

    @abstractmethod
    def runtime(self, spec: ExperimentSpec) -> ChangeNetRuntime: ...

    def monitor(self, train: Any) -> tuple[str, str]:
        kept = train.checkpointer
        name = kept.monitor or train.optim.monitor_name or self.metrics.default
        return name, kept.mode or self.metrics.direction(name)
