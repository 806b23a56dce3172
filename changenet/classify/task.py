"""What the classify task gives to the shared actions. Light: the parts are imported when used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from changenet.classify.metric_names import METRICS
from changenet.task import SHORTHANDS, ChangeNetTask, switched_off

if TYPE_CHECKING:
    from changenet.classify.runtime import ClassifyRuntime
    from changenet.config import ExperimentSpec
    from fiducial.errors import Problem
    from fiducial.task import DataReport

__all__ = ["CLASSIFY"]


class ClassifyTask(ChangeNetTask):
    """Task ``classify``."""

    name = "classify"
    prefix = "changenet_model_classify"
    metrics = METRICS
    shorthands = {
        **SHORTHANDS,
        "batch_size": ("dataset.classify.batch_size",),
        "train_batch_size": ("dataset.classify.batch_size",),
        "num_workers": ("dataset.classify.workers",),
        "num_classes": ("dataset.classify.num_classes",),
        "image_width": ("dataset.classify.image_width",),
        "image_height": ("dataset.classify.image_height",),
        "num_input": ("dataset.classify.num_input",),
        "num_golden": ("dataset.classify.num_golden",),
        "loss": ("train.classify.loss",),
        "difference_module": ("model.classify.difference_module",),
        "eval_margin": ("model.classify.eval_margin",),
    }
    template = {
        "": {
            "wandb.enable": False,
            "model.backbone.type": "c_radio_v2_vit_base_patch16_224",
            "model.decode_head.feature_strides": [4, 8, 16, 32],
            "model.decode_head.use_summary_token": True,
            "model.classify.eval_margin": 0.3,
            "model.classify.embed_dec": 30,
            "model.classify.difference_module": "learnable",
            "dataset.classify.num_input": 1,
            "dataset.classify.input_map": {"SolderLight": 0},
            "train.classify.loss": "ce",
            "train.classify.cls_weight": [1.0, 10.0],
        },
        "train": {
            "dataset.classify.batch_size": 16,
            "dataset.classify.workers": 2,
            "dataset.classify.fpratio_sampling": 0.25,
            "dataset.classify.augmentation_config.augment": True,
            "train.num_epochs": 100,
            "train.validation_interval": 50,
            "train.checkpoint_interval": 50,
            "train.optim.lr": 1e-5,
            "train.tensorboard.enabled": True,
            "train.tensorboard.infrequent_logging_frequency": 1,
        },
        "evaluate": {"evaluate.batch_size": 1},
        "inference": {"inference.batch_size": 1},
    }

    def check_spec(self, spec: ExperimentSpec, action: str) -> Iterator[Problem]:
        from changenet.classify.checks import check_spec

        return check_spec(spec, action)

    def check_data(self, spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        from changenet.classify.inspect import check_data

        return check_data(spec, splits, thorough)

    def unsearched(self, spec: ExperimentSpec, searched: frozenset[str], *, warm: bool = False) -> Mapping[str, str]:
        dead = dict(super().unsearched(spec, searched, warm=warm))
        difference, loss = spec.model.classify.difference_module, spec.train.classify.loss
        fixed = "model.classify.difference_module" not in searched
        if difference != "euclidean" and fixed:
            dead["model.classify.train_margin_euclid"] = f"difference_module is {difference}"
        if difference != "learnable" and fixed:
            dead["model.classify.learnable_difference_modules"] = f"difference_module is {difference}"
        elif warm or spec.train.pretrained_model_path:
            dead["model.classify.learnable_difference_modules"] = "trainings begin with weights that it shapes"
        if loss != "ce" and "train.classify.loss" not in searched:
            dead["train.classify.cls_weight"] = f"loss is {loss}"
        metrics, without_margin = self.compared_by(spec), ("loss", "auroc", "ap", "far", "latency", "size")
        if all(metric.removeprefix("val_").startswith(without_margin) for metric in metrics):
            dead["model.classify.eval_margin"] = f"it changes no training, and not {' or '.join(metrics)}"
        keys = ("model.classify.train_margin_euclid", "model.classify.difference_module", "train.classify")
        dead = {**self.other_losses(spec, *keys), **dead}
        path, augmentation = "dataset.classify.augmentation_config", spec.dataset.classify.augmentation_config
        if not augmentation.augment and f"{path}.augment" not in searched:
            dead[path] = f"{path}.augment is false"
        return {**dead, **dict(switched_off(augmentation, path, searched))}

    def runtime(self, spec: ExperimentSpec) -> ClassifyRuntime:
        from changenet.classify.runtime import ClassifyRuntime

        return ClassifyRuntime(spec)


CLASSIFY = ClassifyTask()
