"""The table of classify's metrics. Where TAO has a name, ours is TAO's, with TAO's definition and unit. No torch."""

from __future__ import annotations

from fiducial.metric_table import Metric, MetricTable, Stage

__all__ = ["METRICS"]

_EVERY: tuple[Stage, ...] = ("train", "val", "test")

METRICS = MetricTable(
    (
        Metric("train_loss", "min", "loss", "mean loss per pair", stages=("train",), logged=(), tao=True),
        Metric("val_loss", "min", "loss", "mean loss per pair", stages=("val",), tao=True),
        Metric("{stage}_acc", "max", "percent", "right decisions, of all rows", stages=_EVERY, grouped=True, tao=True),
        Metric(
            "{stage}_fpr",
            "min",
            "percent",
            "false alarms, of ALL rows (TAO's definition)",
            stages=_EVERY,
            grouped=True,
            tao=True,
        ),
        Metric(
            "{stage}_fnr", "min", "percent", "missed defects, of ALL rows (TAO's definition)", grouped=True, tao=True
        ),
        Metric(
            "defect_acc", "max", "percent", "defects found, of all defects; 0 without any", stages=("test",), tao=True
        ),
        Metric(
            "{stage}_far",
            "min",
            "percent",
            "false alarms, of the good rows, when no defect is missed",
            grouped=True,
            tao=True,
        ),
        Metric("{stage}_far_999", "min", "percent", "the same when 99.9 % of the defects are found", grouped=True),
        Metric("{stage}_far_990", "min", "percent", "the same when 99 % of the defects are found", grouped=True),
        Metric("{stage}_true_fpr", "min", "percent", "false alarms, of the good rows", grouped=True),
        Metric("{stage}_true_fnr", "min", "percent", "missed defects, of the defects", grouped=True),
        Metric("{stage}_precision", "max", "fraction", "defects among the rows that failed", grouped=True),
        Metric("{stage}_recall", "max", "fraction", "failed rows among the defects", grouped=True),
        Metric("{stage}_f1", "max", "fraction", "harmonic mean of precision and recall", grouped=True),
        Metric("{stage}_auroc", "max", "fraction", "area under the ROC curve; needs no margin", grouped=True),
        Metric("{stage}_ap", "max", "fraction", "average precision; needs no margin", grouped=True),
    ),
    default="val_loss",
    main="{stage}_acc",
)
"""Every metric that training or evaluation reports; ``val_recall/C0402`` is that of one component type.

``far*`` are 100 when a class is missing, others are NaN then.
"""
