"""The names that segment reports its metrics under, and which way each is better. No torch.

Names are ``<stage>_<short name>``; training and validation also log the short names alone, as TAO does. Where TAO has a
name, ours is TAO's name with TAO's definition. ``_<k>`` stands for a class number: class 1 is the change of a binary
mask. Means run over all classes, also absent ones, which count 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["METRIC_NAMES", "PER_CLASS", "STAGES", "MetricName", "direction", "find_metric"]

STAGES = ("train", "val", "test")


@dataclass(frozen=True)
class MetricName:
    """One row of the table; all but the loss lie between 0 and 1."""

    name: str
    direction: Literal["min", "max"]
    meaning: str
    per_class: bool = False
    tao: bool = True
    stages: tuple[str, ...] = STAGES


METRIC_NAMES: tuple[MetricName, ...] = (
    MetricName("loss", "min", "mean loss per image", stages=("train", "val")),
    MetricName("acc", "max", "right pixels, of all pixels"),
    MetricName("miou", "max", "mean intersection over union"),
    MetricName("mf1", "max", "mean F1"),
    MetricName("mprecision", "max", "mean precision"),
    MetricName("mrecall", "max", "mean recall"),
    MetricName("iou", "max", "intersection over union of class k", per_class=True),
    MetricName("F1", "max", "harmonic mean of precision and recall of class k", per_class=True),
    MetricName("precision", "max", "right pixels among those predicted as class k", per_class=True),
    MetricName("recall", "max", "pixels of class k that were found", per_class=True),
    MetricName("object_recall", "max", "changed objects that were found, of all", tao=False, stages=("test",)),
    MetricName("object_precision", "max", "right objects among those predicted", tao=False, stages=("test",)),
    MetricName("object_f1", "max", "harmonic mean of the two", tao=False, stages=("test",)),
)
"""Every metric that training or evaluation reports."""

PER_CLASS = tuple(metric.name for metric in METRIC_NAMES if metric.per_class)


def find_metric(full_name: str) -> MetricName | None:
    """The row of a name such as ``val_miou``, ``val_iou_1`` or TAO's unprefixed ``miou``; None when there is none."""
    stage, mark, rest = full_name.partition("_")
    short = rest if mark and stage in STAGES else full_name
    for metric in METRIC_NAMES:
        fits = re.fullmatch(rf"{metric.name}_\d+", short) if metric.per_class else short == metric.name
        if fits and not (short == full_name and metric.name == "loss"):
            return metric if short == full_name or stage in metric.stages else None
    return None


def direction(full_name: str) -> Literal["min", "max"]:
    """Which way a metric is better; unknown names count as losses do."""
    found = find_metric(full_name)
    return found.direction if found else "min"
