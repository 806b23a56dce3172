"""What the report says of a quantized model's speed."""

from pathlib import Path

import pytest
import torch
from tiny_task import METRICS

from fiducial.deploy.quantize.comparison import Measured
from fiducial.deploy.quantize.report import conclusions, write_report


def measured(runtime, seconds, size, kpis=None):
    return Measured(Path("m"), runtime, size, seconds, [{"y": torch.ones(1)}], kpis)


@pytest.mark.parametrize(
    ("runtime", "seconds", "said"),
    [
        ("torch", 1.0, "Only 1.00 times as fast as before in torch on this machine. Torch multiplies"),
        ("onnxruntime", 2.0, "2.00 times slower than before in onnxruntime on this machine. onnxruntime's"),
        ("openvino", 2.0, "2.00 times slower than before in openvino on this machine. A CPU without VNNI"),
    ],
)
def test_a_model_that_is_no_faster_is_told_why(runtime, seconds, said):
    warnings, remarks = conclusions(METRICS, measured(runtime, 1.0, 100), measured(runtime, seconds, 30))
    assert not warnings
    assert [remark[: len(said)] for remark in remarks if "before in" in remark] == [said]


def test_one_that_is_faster_and_smaller_needs_no_remark():
    _, remarks = conclusions(METRICS, measured("openvino", 1.0, 100), measured("openvino", 0.5, 30))
    assert [remark.partition(" (")[0] for remark in remarks] == ["Not evaluated"]
    assert "quantize.compare is false, or no labelled test data" in remarks[0]


def test_nothing_lost_is_no_number_below_zero(tmp_path):
    before, after = (measured("torch", 1.0, 100, {"test_mean": mean}) for mean in (0.5, 0.5000001))
    write_report(tmp_path / "r.html", METRICS, before, after, {}, [], [])
    assert "0.00 points" in (page := (tmp_path / "r.html").read_text("utf-8"))
    assert "-0.00" not in page
