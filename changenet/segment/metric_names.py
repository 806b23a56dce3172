"""The table of segment's metrics. No torch.

Where TAO has a name, ours is TAO's name with TAO's definition. Validation also logs the names without their stage, as
TAO does. ``{class}`` stands for a class number: class 1 is the foreground of a binary mask. Means run over all classes,
also absent ones, which count 0.
"""

from __future__ import annotations

from fiducial.metric_table import Metric, MetricTable, Stage

__all__ = ["METRICS", "PER_CLASS"]

_EVERY: tuple[Stage, ...] = ("train", "val", "test")

PER_CLASS = {
    "iou": "intersection over union of class k",
    "F1": "harmonic mean of precision and recall of class k",
    "precision": "right pixels among those predicted as class k",
    "recall": "pixels of class k that were found",
}
"""Short names of the rates of one class, and what they mean."""


def _pixels(short: str, meaning: str) -> Metric:
    return Metric(f"{{stage}}_{short}", "max", "fraction", meaning, stages=_EVERY, val_alias=short, tao=True)


def _objects(short: str, meaning: str) -> Metric:
    return Metric(f"{{stage}}_object_{short}", "max", "fraction", meaning, stages=("test",))


METRICS = MetricTable(
    (
        Metric("train_loss", "min", "loss", "mean loss per image", stages=("train",), logged=(), tao=True),
        Metric("val_loss", "min", "loss", "mean loss per image", stages=("val",), tao=True),
        _pixels("acc", "right pixels, of all pixels"),
        _pixels("miou", "mean intersection over union"),
        _pixels("mf1", "mean F1"),
        _pixels("mprecision", "mean precision"),
        _pixels("mrecall", "mean recall"),
        *(_pixels(f"{short}_{{class}}", meaning) for short, meaning in PER_CLASS.items()),
        _objects("recall", "changed objects (connected components) that were found, of all"),
        _objects("precision", "right objects among those predicted"),
        _objects("f1", "harmonic mean of the two"),
    ),
    default="val_loss",
    main="{stage}_miou",
)
"""Every metric that training or evaluation reports."""
