"""What onnxruntime runs a file on: as the spec says, and said in the report; and how exactly it adds int8 products."""

import logging
import pickle
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_runtime
import torch
from onnx import TensorProto, helper
from onnx_models import AXIS, constant, write
from tiny_task import LINE, Spec

from fiducial import cli
from fiducial.deploy import onnx_predictor
from fiducial.deploy.onnx_predictor import EXACT_INT8, OnnxPredictor
from fiducial.deploy.providers import chosen_providers, unavailable
from fiducial.errors import CheckpointError

GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU)


def opened(path, providers=()):
    runtime = tiny_runtime.Runtime(Spec())
    runtime.providers = providers
    return OnnxPredictor(path, runtime)


class TestNames:
    @pytest.mark.parametrize(
        ("named", "chosen"),
        [
            ([], GPU[1:]),
            (["cpu"], GPU[2:]),
            (["CPUExecutionProvider"], GPU[2:]),
            (["TensorRT", "cuda", "CPU"], GPU),
        ],
    )
    def test_chosen(self, with_gpu, named, chosen):
        assert not list(unavailable(named, "evaluate.providers"))
        assert [name for name, _ in chosen_providers(named)] == chosen

    def test_float32_stays_what_it_is_on_a_gpu(self, with_gpu):
        assert dict(chosen_providers(["cuda"]))["CUDAExecutionProvider"] == {"use_tf32": "0"}

    def test_not_here(self, monkeypatch):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU[2:])
        monkeypatch.setattr(onnxruntime, "get_all_providers", lambda: GPU)
        said = [str(problem) for problem in unavailable(["cuda", "cpu", "cudda"], "evaluate.providers")]
        assert said == [
            "evaluate.providers · 'cuda' is not in the onnxruntime that is installed · use: cpu",
            "evaluate.providers · 'cudda' is no provider · use: cpu",
        ]


class TestSession:
    def test_is_reported_and_kept_in_a_pickle(self, tmp_path):
        predictor = opened(write(tmp_path / "m.onnx"), ("cpu",))
        for one in (predictor, pickle.loads(pickle.dumps(predictor))):
            assert one.facts() == {"providers": "cpu"}
            assert one.providers == ("cpu",)

    def test_a_provider_without_its_libraries(self, tmp_path, monkeypatch):
        path = write(tmp_path / "m.onnx")
        made = onnx_predictor._made

        def on_the_cpu(file, providers):  # as onnxruntime does, which only prints why
            return made(file, [("CPUExecutionProvider", {})])

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU)
        monkeypatch.setattr(onnx_predictor, "_made", on_the_cpu)
        with pytest.raises(CheckpointError, match="has the provider cuda, but not the libraries that it needs"):
            opened(path, ("cuda",))
        assert opened(path).facts() == {"providers": "cpu"}

    def test_by_key(self, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")
        write(tmp_path / "m.onnx")
        words = ["evaluate", "-e", "spec.yaml", "evaluate.checkpoint=m.onnx"]
        assert cli.main([LINE], [*words, "evaluate.providers=cpu"], prog="tiny") == 0
        capfd.readouterr()
        assert cli.main([LINE], [*words, "evaluate.providers=[cpu,nothing]"], prog="tiny") == 1
        assert "evaluate.providers · 'nothing' is no provider · use: " in capfd.readouterr().err

    def test_no_effect_elsewhere(self, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")
        state = {f"model.{name}": value for name, value in tiny_runtime.Network().state_dict().items()}
        torch.save({"state_dict": state}, "m.pth")
        words = ["evaluate", "-e", "spec.yaml", "evaluate.checkpoint=m.pth", "evaluate.providers=cpu"]
        assert cli.main([LINE], words, prog="tiny") == 0
        assert "evaluate.providers: torch runs the model, which has none" in capfd.readouterr().err


def quantized(path, kind, biased=False):
    """The sum of each row, rounded to 8 bits on its way."""
    number = {TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8}[kind]
    constants = [constant("scale", 0.125), constant("zero", 128 if number is np.uint8 else 0, number), *AXIS]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("ReduceSum", ["d", "axis"], ["y"], keepdims=0),
    ]
    if biased:
        constants += [constant("bias", [0, 0, 8], np.int32), constant("none", 0, np.int32)]
        nodes[2:] = [
            helper.make_node("DequantizeLinear", ["bias", "scale", "none"], ["b"]),
            helper.make_node("Add", ["d", "b"], ["s"]),
            helper.make_node("ReduceSum", ["s", "axis"], ["y"], keepdims=0),
        ]
    return write(path, nodes, constants)


class TestExactInt8:
    @pytest.mark.parametrize(
        ("kind", "biased", "exact"),
        [(TensorProto.INT8, False, "1"), (TensorProto.UINT8, False, None), (TensorProto.INT8, True, None)],
    )
    def test_for_graphs_of_modelopt_alone(self, tmp_path, kind, biased, exact):
        predictor = opened(quantized(tmp_path / "m.onnx", kind, biased))
        options = predictor.session.get_session_options()
        if exact is None:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(EXACT_INT8)
        else:
            assert options.get_session_config_entry(EXACT_INT8) == exact
        rows = torch.tensor([[1.0, 2.0, -3.125]])
        np.testing.assert_allclose(predictor.predict({"x": rows})["y"], [-0.125 + biased])

    def test_graphs_that_do_not_load_with_it(self, tmp_path, monkeypatch):
        made = onnxruntime.InferenceSession

        def refuse(path, options, **more):
            try:
                options.get_session_config_entry(EXACT_INT8)
            except RuntimeError:
                return made(path, options, **more)
            raise RuntimeError("no kernel")

        monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
        predictor = opened(quantized(tmp_path / "m.onnx", TensorProto.INT8))
        np.testing.assert_allclose(predictor.predict({"x": torch.ones(1, 3)})["y"], [3])

    def test_graphs_that_onnxruntime_spoils_on_some_processors(self, tmp_path):
        """Of operator set 21, where it moves rounding over a Reshape and then takes its zero for another type."""
        constants = [constant("scale", 0.125), constant("zero", 0, np.int8), constant("apart", [-1, 3, 1], np.int64)]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("Reshape", ["d", "apart"], ["r"]),
            helper.make_node("Softmax", ["r"], ["s"]),
            helper.make_node("ReduceSum", ["s", "axes"], ["y"], keepdims=0),
        ]
        path = write(tmp_path / "m.onnx", nodes, [*constants, constant("axes", [1, 2], np.int64)], opset=21)
        np.testing.assert_allclose(opened(path).predict({"x": torch.ones(2, 3)})["y"], [3, 3])


def test_what_runs_it_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fiducial"):
        opened(write(tmp_path / "m.onnx"))
    assert "onnxruntime" in caplog.text
    assert "CPUExecutionProvider" in caplog.text
