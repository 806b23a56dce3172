"""File names of checkpoints."""

import re

import pytest

from fiducial.run.names import best_name, checkpoint_name, fault_of, fields_of


def test_periodic():
    assert checkpoint_name(3, 42) == "model_epoch_003_step_00042.pth"


class TestBest:
    @pytest.mark.parametrize(
        ("template", "insert", "name"),
        [
            ("model_best_{epoch:03d}", False, "model_best_004.pth"),
            ("model_best_{epoch:03d}", True, "model_best_epoch_004.pth"),
            ("{val/acc:.2f}-{none}", False, "0.75-0.pth"),
            ("{val/acc:.2f}", True, "val_acc_0.75.pth"),
            ("plain", False, "plain.pth"),
        ],
    )
    def test_filled_in(self, template, insert, name):
        assert best_name(template, {"epoch": 4, "val/acc": 0.75}, insert_names=insert) == name

    def test_fields(self):
        assert fields_of("{epoch:03d} {a b/c:.1f} {}") == ["epoch", "a b/c"]


class TestFault:
    @pytest.mark.parametrize("template", ["best_{epoch:03d}", "20260101_{val_loss:.4f}", "", "{step:05d}", "x" * 251])
    def test_none(self, template):
        assert fault_of(template) == ""

    @pytest.mark.parametrize(
        ("template", "fault"),
        [
            ("{epoch:zz}", "Invalid format specifier|Unknown format code"),
            ("{val_loss:d}", "Unknown format code"),
            ("{val_loss:s}", "Unknown format code"),
            ("{epoch:999999999}", "thousands"),
            ("{epoch:300}", "bytes"),
            ("ä" * 126, "256 bytes"),
        ],
    )
    def test_some(self, template, fault):
        assert re.search(fault, fault_of(template))
