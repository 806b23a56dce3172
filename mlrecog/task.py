"""What ML Recog gives to the shared actions. Light: the parts are imported when used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fiducial.actions.action import Action
from fiducial.spec.shorthands import COMMON
from fiducial.task import ResumeRules, Task
from fiducial.training.policy import TrainerPolicy
from mlrecog.metric_names import METRICS

if TYPE_CHECKING:
    from pathlib import Path

    from fiducial.errors import Problem
    from fiducial.task import DataReport
    from mlrecog.config import ExperimentSpec
    from mlrecog.runtime import RecogRuntime

__all__ = ["ML_RECOG"]

_PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


class RecogTask(Task["ExperimentSpec"]):
    """Metric learning recognition: embeddings, and the nearest neighbours in a gallery."""

    network = "ml_recog"
    name = "mlrecog"
    title = "Metric Learning Recognition"
    prefix = "ml_model"
    metrics = METRICS
    shorthands = {
        **COMMON,
        "batch_size": ("train.batch_size",),
        "train_batch_size": ("train.batch_size",),
        "val_batch_size": ("train.val_batch_size",),
        "learning_rate": ("train.optim.trunk.base_lr", "train.optim.embedder.base_lr"),
        "lr": ("train.optim.trunk.base_lr", "train.optim.embedder.base_lr"),
        "weight_decay": ("train.optim.trunk.weight_decay", "train.optim.embedder.weight_decay"),
        "optimizer": ("train.optim.name",),
        "precision": ("train.precision",),
        "backbone": ("model.backbone",),
        "feat_dim": ("model.feat_dim",),
        "image_width": ("model.input_width",),
        "image_height": ("model.input_height",),
        "pretrained_model": ("model.pretrained_model_path",),
        "num_workers": ("dataset.workers",),
        "num_instance": ("dataset.num_instance",),
        "topk": ("evaluate.topk", "inference.topk"),
    }
    template = {
        "": {"wandb.enable": False},
        "train": {"train.batch_size": 64, "train.num_epochs": 80, "train.val_batch_size": 64},
    }
    onnx_beside_checkpoint = False
    bf16 = "train.precision=bf16"
    memory_savers = ("a smaller model.input_width and input_height", "or model.activation_checkpointing=true")
    resume = ResumeRules(
        also_free=("evaluate.", "train.val_batch_size", "train.report_accuracy_per_class", "gallery."),
        kept=("train.optim.name",),
        rates=("train.optim.trunk.base_lr", "train.optim.embedder.base_lr"),
    )

    def spec_model(self) -> type[ExperimentSpec]:
        from mlrecog.config import ExperimentSpec

        return ExperimentSpec

    def own_actions(self) -> tuple[Action, ...]:
        def gallery(task: Task[Any], run: Any) -> Any:
            from mlrecog.gallery_action import run_gallery

            return run_gallery(task, run)

        return (
            Action(
                "gallery",
                "keep reference embeddings, and search them",
                run=gallery,
                model_key="checkpoint",
                verbs=("build", "add", "remove", "search", "stats"),
                side_by_side=True,
            ),
        )

    def splits(self, action: Action) -> tuple[str, ...]:
        return ("val",) if action.name == "evaluate" else action.splits

    def policy(self, spec: ExperimentSpec) -> TrainerPolicy:
        train = spec.train
        return TrainerPolicy(
            precision=_PRECISIONS[train.precision],
            manual=True,
            gradient_clip=train.clip_grad_norm or None,
            sanity_batches=0,
        )

    def unsearched(self, spec: ExperimentSpec, searched: frozenset[str], *, warm: bool = False) -> Mapping[str, str]:
        optim, dead = spec.train.optim, {}
        for part in ("trunk", "embedder"):
            if optim.name != "SGD" and "train.optim.name" not in searched:
                dead[f"train.optim.{part}.momentum"] = f"{optim.name} has none"
            if not getattr(spec.train, f"train_{part}") and f"train.train_{part}" not in searched:
                dead[f"train.optim.{part}"] = f"train.train_{part} is false"
        beyond = min(optim.steps, default=spec.train.num_epochs) >= spec.train.num_epochs
        if beyond and "train.optim.steps" not in searched:
            dead["train.optim.gamma"] = "no step is within train.num_epochs"
        if optim.warmup_iters == 0 and "train.optim.warmup_iters" not in searched:
            dead["train.optim.warmup_factor"] = "there is no warm-up"
        return dead

    def check_spec(self, spec: ExperimentSpec, action: str) -> Iterator[Problem]:
        from mlrecog.checks import check_spec

        return check_spec(spec, action)

    def check_data(self, spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        from mlrecog.inspect import check_data

        return check_data(spec, splits, thorough=thorough)

    def check_weights(self, spec: ExperimentSpec, resume: Path | None = None) -> Iterable[Problem]:
        from fiducial.backbones.hub import local_weights
        from mlrecog.checks import PRETRAINED

        given = any(getattr(spec.model, key.removeprefix("model.")) for key in PRETRAINED)
        if (resume or given) and not any(p.level == "error" for p in self.check_spec(spec, "train")):
            yield from self.runtime(spec).check_weights(resume, lambda value, key: local_weights(value, key=key))

    def runtime(self, spec: ExperimentSpec) -> RecogRuntime:
        from mlrecog.runtime import RecogRuntime

        return RecogRuntime(spec)


ML_RECOG = RecogTask()
