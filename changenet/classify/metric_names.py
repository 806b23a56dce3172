"""The names that classify reports its metrics under, which way is better, and in which unit.

Names are ``<stage>_<short name>``, except TAO's ``defect_acc``. Where TAO has a name, ours is TAO's name with TAO's
definition and unit. One row per name, so that the spec checks (``monitor_name``, ``train.checkpointer.monitor``), the
docs and the metrics themselves cannot disagree. Nothing here imports torch.

A metric of one group of rows (a component type) is ``<name>/<group>``: ``val_recall/C0402``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRIC_NAMES", "MetricName", "Stage", "direction", "find_metric", "metrics_of"]

Stage = Literal["train", "val", "test"]


@dataclass(frozen=True)
class MetricName:
    """One row of the table. ``percent`` is 0..100, ``fraction`` 0..1, ``loss`` unbounded."""

    name: str
    stages: tuple[Stage, ...]
    direction: Literal["min", "max"]
    unit: Literal["percent", "fraction", "loss"]
    meaning: str
    tao: bool = False

    def at(self, stage: Stage) -> str:
        """The full name in one stage: ``acc`` at ``val`` is ``val_acc``."""
        return self.name if self.name == "defect_acc" else f"{stage}_{self.name}"


_EVERY: tuple[Stage, ...] = ("train", "val", "test")
_HELD_OUT: tuple[Stage, ...] = ("val", "test")

METRIC_NAMES: tuple[MetricName, ...] = (
    MetricName("loss", ("train", "val"), "min", "loss", "mean loss per pair", tao=True),
    MetricName("acc", _EVERY, "max", "percent", "right decisions, of all rows", tao=True),
    MetricName("fpr", _EVERY, "min", "percent", "false alarms, of ALL rows (TAO's definition)", tao=True),
    MetricName("fnr", _HELD_OUT, "min", "percent", "missed defects, of ALL rows (TAO's definition)", tao=True),
    MetricName("defect_acc", ("test",), "max", "percent", "defects found, of all defects; 0 without any", tao=True),
    MetricName(
        "far", _HELD_OUT, "min", "percent", "false alarms, of the good rows, when no defect is missed", tao=True
    ),
    MetricName("far_999", _HELD_OUT, "min", "percent", "the same when 99.9 % of the defects are found"),
    MetricName("far_990", _HELD_OUT, "min", "percent", "the same when 99 % of the defects are found"),
    MetricName("true_fpr", _HELD_OUT, "min", "percent", "false alarms, of the good rows"),
    MetricName("true_fnr", _HELD_OUT, "min", "percent", "missed defects, of the defects"),
    MetricName("precision", _HELD_OUT, "max", "fraction", "defects among the rows that failed"),
    MetricName("recall", _HELD_OUT, "max", "fraction", "failed rows among the defects"),
    MetricName("f1", _HELD_OUT, "max", "fraction", "harmonic mean of precision and recall"),
    MetricName("auroc", _HELD_OUT, "max", "fraction", "area under the ROC curve; needs no margin"),
    MetricName("ap", _HELD_OUT, "max", "fraction", "average precision; needs no margin"),
)
"""Every metric that training or evaluation reports. ``far*`` are 100 when a class is missing, others are NaN then."""


def metrics_of(stage: Stage) -> dict[str, MetricName]:
    """Full name -> row, for one stage."""
    return {metric.at(stage): metric for metric in METRIC_NAMES if stage in metric.stages}


def find_metric(full_name: str) -> MetricName | None:
    """The row of a full name such as ``val_far`` or ``val_recall/C0402``, or None when there is no such metric."""
    name = full_name.partition("/")[0]
    return next((found for stage in _EVERY if (found := metrics_of(stage).get(name))), None)


def direction(full_name: str) -> Literal["min", "max"]:
    """Which way a metric is better; unknown names count as losses do."""
    found = find_metric(full_name)
    return found.direction if found else "min"
