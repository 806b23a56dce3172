"""What the classify task gives to the shared actions. Light: the parts are imported when used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from changenet.classify.metric_names import METRICS
from changenet.task import ChangeNetTask

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

    def check_spec(self, spec: ExperimentSpec, action: str) -> Iterator[Problem]:
        from changenet.classify.checks import check_spec

        return check_spec(spec, action)

    def check_data(self, spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
        from changenet.classify.inspect import check_data

        return check_data(spec, splits, thorough)

    def runtime(self, spec: ExperimentSpec) -> ClassifyRuntime:
        from changenet.classify.runtime import ClassifyRuntime

        return ClassifyRuntime(spec)


CLASSIFY = ClassifyTask()
