"""What ML Recog measures."""

from __future__ import annotations

from fiducial.metric_table import Metric, MetricTable

__all__ = ["METRICS"]

_RETRIEVAL = (
    ("Precision at Rank 1", "share of queries whose nearest neighbour is of their class"),
    ("r-Precision", "share of their class among the nearest R, of which the gallery has R"),
    ("Mean Average Precision", "precision at each neighbour of its class, averaged"),
    ("Mean Reciprocal Rank", "1 / rank of the first neighbour of its class"),
)
_CLUSTERS = (
    ("AMI", "agreement of a clustering of the queries with their classes, adjusted for chance"),
    ("NMI", "the same, not adjusted"),
)
_MORE = (
    ("MAP_at_R", "mean average precision, cut at R neighbours"),
    ("recall_at_1", "share of queries with their class among the nearest"),
    ("recall_at_5", "the same among 5"),
    ("recall_at_10", "the same among 10"),
    ("mAP", "mean average precision over the whole gallery, of queries"),
    ("NDCG_at_10", "discounted gain of the 10 nearest, against the best order"),
)

METRICS = MetricTable(
    (
        Metric("train_loss", "min", "loss", "mean loss of a batch", stages=("train",), logged=(), tao=True),
        *(
            Metric(f"{part}_base_lr", "max", "text", f"learning rate of the {part}", stages=("train",), tao=True)
            for part in ("trunk", "embedder")
        ),
        *(Metric(f"{{stage}} {name}", "max", "fraction", meaning, tao=True) for name, meaning in _RETRIEVAL),
        *(Metric(f"{{stage}}_{name}", "max", "fraction", meaning, tao=True) for name, meaning in _CLUSTERS),
        *(Metric(f"{{stage}}_{name}", "max", "fraction", meaning) for name, meaning in _MORE),
        Metric("pictures", "max", "count", "pictures that were looked up", stages=("infer",)),
        Metric("unknown", "min", "count", "pictures of no class of the gallery", stages=("infer",)),
    ),
    default="val Precision at Rank 1",
    main="{stage} Precision at Rank 1",
)
