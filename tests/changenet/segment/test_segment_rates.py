"""0 / 0: empty where people read it, 0 among the KPIs."""

import csv

import numpy as np
import pytest

from changenet.segment.counts import Counts, class_counts
from changenet.segment.image_results import ImageResult, write_image_csv
from changenet.segment.metrics import per_class, summary
from changenet.segment.objects import ObjectCounts
from changenet.segment.outputs import object_kpis
from changenet.segment.rates import EPSILON, as_kpi, kpi_rate, rate

NO_CHANGE = np.array([[9, 0], [0, 0]])
"""Nothing has changed and nothing is said to have: every rate of class 1 is 0 / 0."""


def test_hand_computed():
    assert rate(3, 4) == as_kpi(rate(3, 4)) == 0.75
    assert kpi_rate(np.array([3.0, 0.0]), np.array([4.0, 5.0])).tolist() == [3 / (4 + EPSILON), 0]


def test_nothing_to_divide_by():
    assert rate(0, 0) is None
    assert as_kpi(rate(0, 0)) == 0.0
    assert kpi_rate(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


def test_zero_is_not_nothing():
    assert rate(0, 5) == 0.0


@pytest.mark.parametrize("name", ["iou", "F1", "precision", "recall"])
def test_both_ways_agree_where_there_is_something(name):
    matrix = np.array([[50, 10, 3], [5, 35, 0], [2, 4, 8]])
    counted = [getattr(counts, name.lower()) for counts in class_counts(matrix)]
    assert per_class(matrix)[name] == pytest.approx(counted, abs=1e-6)


def test_empty_in_the_csv(tmp_path):
    assert class_counts(NO_CHANGE)[1] == Counts(0, 0, 0)
    write_image_csv(tmp_path / "images.csv", [ImageResult("a.png", NO_CHANGE, ObjectCounts())])
    with (tmp_path / "images.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in ("precision", "recall", "f1", "iou")] == [""] * 4


def test_zero_among_the_kpis():
    kpis = summary(NO_CHANGE) | object_kpis(ObjectCounts())
    names = ["recall_1", "precision_1", "F1_1", "iou_1"]
    names += [f"test_object_{name}" for name in ("recall", "precision", "f1")]
    assert [kpis[name] for name in names] == [0.0] * len(names)
