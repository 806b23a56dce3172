"""What is said of a quantize section before anything is loaded, and which layers its patterns choose."""

import pytest
from tiny_task import Spec

from fiducial.deploy.quantize.patterns import INT8, Layer, LayerFormat, plan_layers
from fiducial.deploy.quantize.rules import check_quantize
from fiducial.spec.common import QuantizeLayer

LAYERS = [Layer("stem.conv", "Conv2d"), Layer("blocks.0.fc1", "Linear"), Layer("blocks.0.fc2", "Linear")]


def entry(name, weights=None, activations=None, axis=None):
    sides = {"weights": weights, "activations": activations}
    return QuantizeLayer(
        module_name=name, **{side: {"dtype": dtype, "quant_axis": axis} for side, dtype in sides.items() if dtype}
    )


def problems(*, compat="off", **section):
    spec = Spec.model_validate({"compat": compat, "quantize": section})
    return [(problem.where, problem.level) for problem in check_quantize(spec)]


class TestPatterns:
    def plan(self, *entries, skip=(), default=INT8):
        return plan_layers(LAYERS, entries, skip, default=default)

    def test_no_entry_is_every_layer(self):
        assert self.plan()[0] == dict.fromkeys((layer.name for layer in LAYERS), INT8)
        assert self.plan(default=None) == ({}, [])

    def test_name_then_class(self):
        assert list(self.plan(entry("Linear", "int8"))[0]) == ["blocks.0.fc1", "blocks.0.fc2"]
        assert list(self.plan(entry("*.fc1", "int8"))[0]) == ["blocks.0.fc1"]
        assert list(self.plan(entry("Conv*", "int8"))[0]) == ["stem.conv"]

    def test_later_entries_win(self):
        plan, _ = self.plan(entry("*", "int8", "int8"), entry("*.fc1", "fp8_e4m3fn", axis=0), entry("*.fc2", "native"))
        assert plan == {
            "stem.conv": LayerFormat("int8", "int8"),
            "blocks.0.fc1": LayerFormat("fp8_e4m3fn", weight_axis=0),
        }

    def test_skipped_after_all_entries(self, caplog):
        assert list(self.plan(entry("*", "int8"), skip=["Linear", "*lm_head*"])[0]) == ["stem.conv"]
        assert "quantize.skip_names: no layer that could be quantized is named *lm_head*" in caplog.text

    def test_upper_and_lower_case_differ(self):
        plan, found = self.plan(entry("linear", "int8"), entry("Conv2d", "int8"))
        assert list(plan) == ["stem.conv"]
        assert [problem.where for problem in found] == ["quantize.layers[0].module_name"]
        assert "Conv2d, Linear" in found[0].fix


class TestRules:
    @pytest.mark.parametrize(
        "section",
        [
            {},
            {"mode": "dynamic_ptq"},
            {"backend": "modelopt", "mode": "STATIC_PTQ", "algorithm": "entropy"},
            {"backend": "modelopt.onnx", "mode": "static_ptq", "algorithm": "max", "device": "trt"},
            {"backend": "openvino"},
            {"backend": "openvino", "mode": "static_ptq"},
            {"layers": [{"module_name": "Linear", "weights": {"dtype": "int8"}}]},
        ],
    )
    def test_what_goes_together(self, section):
        assert problems(**section) == []

    @pytest.mark.parametrize(
        ("section", "where", "level"),
        [
            ({"mode": "static_ptq"}, "mode", "error"),
            ({"backend": "modelopt.onnx"}, "mode", "error"),  # TAO: switching the backend alone fails, too
            ({"backend": "modelopt", "mode": "static_ptq", "device": "trt"}, "device", "error"),
            ({"layers": [{"module_name": "Linear"}]}, "layers", "error"),
            ({"layers": [{"weights": {"dtype": "int8"}}]}, "layers[0].module_name", "error"),
            ({"backend": "modelopt", "mode": "static_ptq", "algorithm": "awq_lite"}, "algorithm", "warning"),
            (
                {"layers": [{"module_name": "*", "weights": {"dtype": "int8"}, "activations": {"dtype": "int8"}}]},
                "layers[0].activations",
                "warning",
            ),
            (
                {"backend": "openvino", "layers": [{"module_name": "*", "weights": {"dtype": "fp8_e4m3fn"}}]},
                "layers[0].weights.dtype",
                "error",
            ),
            ({"compat": "tao"}, "layers", "warning"),
        ],
    )
    def test_what_does_not(self, section, where, level):
        assert problems(**section) == [(f"quantize.{where}", level)]

    def test_a_package_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr("fiducial.deploy.quantize.rules.find_spec", lambda name: None)
        (problem,) = check_quantize(Spec())
        assert problem.fix == "pip install 'fiducial[quantize]'"
        both = list(check_quantize(Spec.model_validate({"quantize": {"backend": "openvino"}})))
        assert {problem.fix for problem in both} == {"pip install 'fiducial[openvino]'"}
