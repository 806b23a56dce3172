"""What a task's table of metrics answers."""

import subprocess
import sys

import pytest

from fiducial.metric_table import Metric, MetricTable

TABLE = MetricTable(
    (
        Metric("{stage}_loss", "min", "loss", "mean loss", stages=("train",), logged=()),
        Metric("{stage} Rank 1", "max", "fraction", "nearest is right"),
        Metric("mIoU", "max", "fraction", "overlap", logged=("{stage}/mIoU",)),
        Metric("{stage}_iou_{class}", "max", "fraction", "overlap of a class", val_alias="iou_{class}"),
        Metric("{stage}_recall", "max", "fraction", "found", grouped=True),
        Metric("rate", "min", "text", "learning rate", stages=("train",)),
    ),
    default="mIoU",
)


@pytest.mark.parametrize(
    ("name", "stages", "meaning"),
    [
        ("val Rank 1", ("val",), "nearest is right"),
        ("test Rank 1", ("val",), None),
        ("mIoU", ("val",), "overlap"),
        ("val/mIoU", ("val",), "overlap"),
        ("val_iou_12", ("val",), "overlap of a class"),
        ("iou_12", ("val",), "overlap of a class"),
        ("iou_12", ("test",), None),
        ("val_iou_", ("val",), None),
        ("val_recall/C0402", ("val",), "found"),
        ("val_iou_1/C0402", ("val",), None),
        ("", ("val",), None),
    ],
)
def test_find(name, stages, meaning):
    found = TABLE.find(name, stages)
    assert (found.meaning if found else None) == meaning


def test_direction():
    assert [TABLE.direction(name) for name in ("train_loss", "val/mIoU", "unheard of")] == ["min", "max", "min"]


@pytest.mark.parametrize(
    ("kpi", "stage", "logged"),
    [
        ("train_loss", "train", ()),
        ("val Rank 1", "val", ("val Rank 1",)),
        ("mIoU", "val", ("val/mIoU",)),
        ("val_iou_3", "val", ("val_iou_3", "iou_3")),
        ("test_iou_3", "test", ("test_iou_3",)),
        ("val_recall/C0402", "val", ("val_recall/C0402",)),
        ("rate", "train", ()),
        ("in no table", "val", ("in no table",)),
    ],
)
def test_logged(kpi, stage, logged):
    assert TABLE.logged(kpi, stage) == logged


def test_class_number():
    row = TABLE.find("val_iou_7")
    assert row is not None
    assert (row.class_number("val_iou_7"), row.class_number("iou_7"), row.class_number("val_iou_x")) == (7, 7, None)


def test_kpis_of_a_stage():
    assert list(TABLE.kpis("test")) == ["test Rank 1", "mIoU", "test_iou_{class}", "test_recall"]


def test_it_is_light():
    code = "import sys, fiducial.task, fiducial.actions.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
