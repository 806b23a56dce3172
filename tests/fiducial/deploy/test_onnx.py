"""Export and evaluation actions, and the ONNX predictor, with the tiny network."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_runtime
import torch
from tiny_task import LINE, Spec

from fiducial import cli
from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.errors import CheckpointError
from fiducial.run.status import read_status


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return tiny_runtime.Network().eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save({"state_dict": {f"model.{key}": value for key, value in network.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """By batch size, -1 for an open one."""
    folder, runtime = tmp_path_factory.mktemp("onnx"), tiny_runtime.Runtime(Spec())
    files = {size: folder / f"b{size}.onnx" for size in (-1, 4)}
    for size, path in files.items():
        settings = ExportSettings(18, size)
        export_onnx(network, path, runtime.graph(), settings, card=runtime.card(), samples=[])
    return files


@pytest.fixture
def act(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")

    def run(action, *overrides):
        overrides = [text.replace("CHECKPOINT", str(checkpoint)) for text in overrides]
        return cli.main([LINE], [action, "-e", "spec.yaml", *overrides], prog="tiny")

    return run


class TestGraph:
    def test_open_batch(self, exported):
        model = onnx.load(exported[-1])
        (value,) = model.graph.input
        assert (value.name, value.type.tensor_type.shape.dim[0].dim_param) == ("x", "batch")
        assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        card = ModelCard.of(json.loads({p.key: p.value for p in model.metadata_props}["fiducial"]))
        assert (card.task, card.details) == ("line", {"shift": 0.0})
        assert (card.inputs["x"].shape, card.outputs["y"].shape) == ((3,), ())
        assert len(card.weights) == 64

    def test_fixed_batch(self, exported):
        (value,) = onnx.load(exported[4]).graph.input
        assert value.type.tensor_type.shape.dim[0].dim_value == 4

    @pytest.mark.parametrize("size", [-1, 4])
    @pytest.mark.parametrize("rows", [1, 3, 4, 6])
    def test_predicts_what_torch_does(self, exported, network, size, rows):
        x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
        predictor = OnnxPredictor(exported[size], tiny_runtime.Runtime(Spec()))
        assert predictor.batch_size == (None if size < 0 else 4)
        with torch.no_grad():
            np.testing.assert_allclose(predictor.predict({"x": x})["y"], network(x), rtol=1e-5, atol=1e-6)

    def test_wrong_graph_gets_no_name(self, network, tmp_path):
        class Noise(torch.nn.Module):
            calls = 0

            def forward(self, x):
                type(self).calls += 1
                return x.sum(1) + self.calls

        runtime, path = tiny_runtime.Runtime(Spec()), tmp_path / "m.onnx"
        with pytest.raises(CheckpointError, match="y differs from torch by"):
            export_onnx(Noise(), path, runtime.graph(), ExportSettings(18, -1), card=ModelCard(), samples=[])
        assert list(tmp_path.iterdir()) == []


class TestMismatch:
    def test_shape_and_name(self, exported):
        runtime = tiny_runtime.Runtime(Spec())
        runtime.graph = lambda: tiny_runtime.Graph({"x": tiny_runtime.GraphInput("x", (5,))}, ("y",), "batch")
        with pytest.raises(CheckpointError, match=r"input x is \[3\], the spec composes \[5\]"):
            OnnxPredictor(exported[-1], runtime)
        runtime.graph = lambda: tiny_runtime.Graph({"z": tiny_runtime.GraphInput("x", (3,))}, ("y",), "batch")
        with pytest.raises(CheckpointError, match="no input 'z' \\(it has x\\)"):
            OnnxPredictor(exported[-1], runtime)

    def test_preprocessing_is_the_cards(self, network, tmp_path):
        shifted = tiny_runtime.Runtime(Spec.model_validate({"dataset": {"shift": 2.5}}))
        settings = ExportSettings(18, -1)
        export_onnx(network, tmp_path / "m.onnx", shifted.graph(), settings, card=shifted.card(), samples=[])
        runtime = tiny_runtime.Runtime(Spec())
        OnnxPredictor(tmp_path / "m.onnx", runtime)
        assert runtime.shift == 2.5

    def test_a_card_that_is_none(self, exported, tmp_path):
        model = onnx.load(exported[-1])
        model.metadata_props[0].value = '{"inputs": 3}'
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(CheckpointError, match="its model card cannot be read"):
            OnnxPredictor(tmp_path / "m.onnx", tiny_runtime.Runtime(Spec()))

    @pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" * 40])
    def test_damaged(self, tmp_path, content):
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="export the model again"):
            OnnxPredictor(path, tiny_runtime.Runtime(Spec()))


class TestActions:
    def test_export_then_evaluate(self, act, tmp_path, capfd):
        assert act("export", "export.checkpoint=CHECKPOINT", "export.onnx_file=out/m.onnx", "dataset.rows=3") == 0
        assert "export.opset_version: 17 is too old for this graph: writing 18" in capfd.readouterr().err
        assert act("export", "export.checkpoint=CHECKPOINT", "export.onnx_file=out/m.onnx") == 1
        assert "exists already · set export.overwrite=true" in capfd.readouterr().err
        assert act("evaluate", "evaluate.checkpoint=CHECKPOINT", "results_dir=torch") == 0
        assert act("evaluate", "evaluate.checkpoint=out/m.onnx", "results_dir=onnx") == 0
        by_torch, by_onnx = (
            json.loads((tmp_path / d / "evaluate/evaluate.json").read_text()) for d in ("torch", "onnx")
        )
        assert (by_torch["runtime"], by_onnx["runtime"]) == ("torch", "onnxruntime")
        np.testing.assert_allclose(by_onnx["rows"], by_torch["rows"], rtol=1e-5)
        assert [row for row, _ in by_onnx["rows"]] == list(range(10))
        messages = [record["message"] for record in read_status(tmp_path / "onnx/evaluate/status.json")]
        assert messages == [
            "Starting Tiny evaluate.",
            f"Loading checkpoint: {tmp_path / 'out/m.onnx'}",
            "Test metrics generated.",
            *["Evaluate finished successfully."] * 2,
        ]
        assert act("export", "export.checkpoint=out/m.onnx") == 1
        assert "is exported already" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("target", "text"),
        [("m.etlt", "its format is NVIDIA's own"), ("file/m.onnx", "export.onnx_file · cannot write to")],
    )
    def test_export_refused(self, act, tmp_path, capfd, target, text):
        (tmp_path / "file").touch()
        assert act("export", "export.checkpoint=CHECKPOINT", f"export.onnx_file={target}") == 1
        err = capfd.readouterr().err
        assert text in err
        assert "Traceback" not in err

    def test_interrupted(self, act, capfd):
        tiny_runtime.STOP["predict"] = KeyboardInterrupt()
        assert act("inference", "inference.checkpoint=CHECKPOINT") == 130
        assert capfd.readouterr().err.rstrip().endswith("Execution status: FAIL")
        record = read_status(Path("r/inference/status.json"))[-1]
        assert record["message"] == "User/System interruption: Inference was interrupted"

    def test_progress(self, act, capfd):
        assert act("inference", "inference.checkpoint=CHECKPOINT") == 0
        assert "batch 3/3 " in capfd.readouterr().err

    def test_no_model(self, act, capfd):
        assert act("inference", "inference.checkpoint=none.pth") == 1
        err = capfd.readouterr().err
        assert "inference.checkpoint · no file" in err
        assert "Traceback" not in err
