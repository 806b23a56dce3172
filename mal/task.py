"""What MAL gives to the shared actions. Light: the parts are imported when used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fiducial.actions.action import Action
from fiducial.spec.shorthands import COMMON
from fiducial.task import ResumeRules, Task
from fiducial.training.policy import TrainerPolicy
from mal.metric_names import METRICS
from mal.old_specs import unwrapped

if TYPE_CHECKING:
    from pathlib import Path

    from fiducial.errors import Problem
    from fiducial.task import DataReport
    from mal.config import ExperimentSpec
    from mal.runtime import MalRuntime

__all__ = ["MAL"]


class MalTask(Task["ExperimentSpec"]):
    """Mask Auto-Labeler: boxes in, masks out."""

    network = "mal"
    name = "mal"
    title = "MAL"
    prefix = "mal_model"
    metrics = METRICS
    shorthands = {
        **COMMON,
        "batch_size": ("train.batch_size",),
        "train_batch_size": ("train.batch_size",),
        "learning_rate": ("train.lr",),
        "lr": ("train.lr",),
        "weight_decay": ("train.wd",),
        "warmup_epochs": ("train.warmup_epochs",),
        "arch": ("model.arch",),
        "backbone": ("model.arch",),
        "crop_size": ("dataset.crop_size",),
        "num_workers": ("dataset.num_workers_per_gpu",),
        "pretrained_model": ("train.pretrained_model_path",),
        "label_dump_path": ("inference.label_dump_path",),
    }
    template = {"": {"wandb.enable": False}}
    bf16 = "train.use_amp=true train.amp_dtype=bfloat16"
    memory_savers = (
        "a smaller dataset.crop_size (384, 256)",
        "model.activation_checkpointing=true",
        "or a smaller model.arch",
    )
    resume = ResumeRules(
        also_free=("evaluate.batch_size", "evaluate.compute_ap"),
        kept=("train.wd", "train.optim_eps", "train.optim_betas"),
        rates=("train.lr",),
    )

    def spec_model(self) -> type[ExperimentSpec]:
        from mal.config import ExperimentSpec

        return ExperimentSpec

    def unwrap(self, tree: dict[str, Any]) -> dict[str, Any]:
        return unwrapped(tree)

    def splits(self, action: Action) -> tuple[str, ...]:
        return ("val",) if action.name == "evaluate" else action.splits

    def policy(self, spec: ExperimentSpec) -> TrainerPolicy:
        train = spec.train
        half = {"float16": "16-mixed", "bfloat16": "bf16-mixed"}[train.amp_dtype]
        return TrainerPolicy(
            precision=half if train.use_amp else "32-true",
            half_on_cpu="32-true",
            evaluation_precision="16-mixed" if spec.compat == "tao" else "32-true",
            manual=True,
            accumulate=train.accum_grad_batches,
            sanity_batches=2,
        )

    def check_spec(self, spec: ExperimentSpec, action: str) -> Iterator[Problem]:
        from mal.checks import check_spec

        return check_spec(spec, action)

    def check_data(self, spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        from mal.inspect import check_data

        return check_data(spec, splits, thorough=thorough)

    def check_weights(self, spec: ExperimentSpec, resume: Path | None = None) -> Iterable[Problem]:
        from fiducial.backbones.hub import check_weights_source, local_weights
        from mal.checks import WEIGHTS_KEY

        path = spec.train.pretrained_model_path
        local = None if resume or not path else local_weights(path, key=WEIGHTS_KEY)
        if path and not resume and not local:
            yield from check_weights_source(path, spec.model.arch, key=WEIGHTS_KEY)
        if (resume or local) and not any(p.level == "error" for p in self.check_spec(spec, "train")):
            yield from self.runtime(spec).check_weights(resume, local)

    def runtime(self, spec: ExperimentSpec) -> MalRuntime:
        from mal.runtime import MalRuntime

        return MalRuntime(spec)


MAL = MalTask()
