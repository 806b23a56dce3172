"""What MAL measures."""

from __future__ import annotations

from fiducial.metric_table import Metric, MetricTable

__all__ = ["METRICS"]

_HELD_OUT = ("val", "test")

METRICS = MetricTable(
    (
        Metric("train_loss", "min", "loss", "mean loss of a batch", stages=("train",), logged=(), tao=True),
        Metric(
            *("mIoU", "max", "fraction", "mean over classes of the mean IoU of their objects"),
            logged=("{stage}/mIoU",),
            tao=True,
        ),
        *(
            Metric(
                *(f"mIoU_{size}", "max", "fraction", f"the same of {size} boxes"),
                logged=(f"{{stage}}/mIoU_{size}",),
                tao=True,
            )
            for size in ("small", "medium", "large")
        ),
        Metric(
            *("val_cluster_score", "min", "loss", "mean squared distance of features to the centre of their class"),
            logged=("{stage}/cluster_score",),
            tao=True,
        ),
        Metric("boundary_F", "max", "fraction", "mean F-score of the contours", logged=("{stage}/boundary_F",)),
        Metric(
            "object_IoU", "max", "fraction", "mean IoU of the objects, classes aside", logged=("{stage}/object_IoU",)
        ),
        *(
            Metric(f"{name}_segm", "max", "fraction", f"COCO's {name} of the masks", stages=("test",), logged=())
            for name in (
                "AP",
                "AP50",
                "AP75",
                "APs",
                "APm",
                "APl",
                "ARmax1",
                "ARmax10",
                "ARmax100",
                "ARs",
                "ARm",
                "ARl",
            )
        ),
        Metric("boxes", "max", "count", "annotations that were read", stages=("infer",)),
        Metric("labelled", "max", "count", "annotations that have a mask now", stages=("infer",)),
        Metric("empty", "min", "count", "masks without a pixel", stages=("infer",)),
        Metric(
            "left_out", "min", "count", "annotations without a mask, for the reasons in the file", stages=("infer",)
        ),
    ),
    default="mIoU",
    main="mIoU",
)
