import subprocess
import sys

import pytest

from changenet.classify.metric_names import METRICS


def test_tao_names_are_all_there():
    assert {"train_loss", "train_acc", "train_fpr"} == set(METRICS.kpis("train"))
    assert {"val_loss", "val_acc", "val_fpr", "val_far"} <= set(METRICS.kpis("val"))
    assert {"test_acc", "test_fpr", "test_fnr", "defect_acc"} <= set(METRICS.kpis("test"))


@pytest.mark.parametrize(
    ("name", "direction"),
    [("val_loss", "min"), ("val_far", "min"), ("val_auroc", "max"), ("defect_acc", "max"), ("val_recall/C0402", "max")],
)
def test_direction(name, direction):
    found = METRICS.find(name)
    assert found is not None
    assert found.direction == direction


@pytest.mark.parametrize("name", ["val_aurok", "far", "test_loss", "", "/C0402"])
def test_unknown_names(name):
    assert METRICS.find(name) is None


def test_names_are_unique():
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


def test_importing_it_does_not_import_torch():
    code = "import sys, changenet.classify.metric_names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
