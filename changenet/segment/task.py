"""What the segment task gives to the shared actions. Light: the parts are imported when used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from changenet.segment.metric_names import METRICS
from changenet.task import SHORTHANDS, ChangeNetTask, switched_off

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec
    from changenet.segment.runtime import SegmentRuntime
    from fiducial.errors import Problem
    from fiducial.task import DataReport

__all__ = ["SEGMENT"]


class SegmentTask(ChangeNetTask):
    """Task ``segment``."""

    name = "segment"
    prefix = "changenet_model_segment"
    metrics = METRICS
    shorthands = {
        **SHORTHANDS,
        "batch_size": ("dataset.segment.batch_size",),
        "train_batch_size": ("dataset.segment.batch_size",),
        "num_workers": ("dataset.segment.workers",),
        "num_classes": ("dataset.segment.num_classes",),
        "image_size": ("dataset.segment.img_size",),
        "root_dir": ("dataset.segment.root_dir",),
        "loss": ("train.segment.loss",),
    }
    template = {"": {"wandb.enable": False}}

    def check_spec(self, spec: ExperimentSpec, action: str) -> Iterator[Problem]:
        from changenet.segment.checks import check_spec

        return check_spec(spec, action)

    def check_data(self, spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        from changenet.segment.inspect import check_data

        return check_data(spec, splits, thorough)

    def unsearched(self, spec: ExperimentSpec, searched: frozenset[str], *, warm: bool = False) -> Mapping[str, str]:
        augmentation = spec.dataset.segment.augmentation
        dead = dict(super().unsearched(spec, searched, warm=warm))
        dead |= self.other_losses(spec, "dataset.segment.multi_scale_train", "train.segment")
        return {**dead, **dict(switched_off(augmentation, "dataset.segment.augmentation", searched))}

    def runtime(self, spec: ExperimentSpec) -> SegmentRuntime:
        from changenet.segment.runtime import SegmentRuntime

        return SegmentRuntime(spec)


SEGMENT = SegmentTask()
