"""Export and evaluation actions, and the ONNX predictor, with the tiny network."""

import errno
import json
import socket
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_runtime
import torch
from tiny_task import LINE, Spec

from fiducial import cli
from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx, forget_sources
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.deploy.verification import difference
from fiducial.errors import CheckpointError, SpecError
from fiducial.prediction import Graph, GraphInput
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


class Attentive(torch.nn.Module):
    """Layers that operator sets before 14 have no operators for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.norm = torch.nn.LayerNorm(8)
        self.project = torch.nn.Linear(8, 24)

    def forward(self, image):
        tokens = self.norm(self.conv(image).flatten(2).transpose(1, 2))
        query, key, value = self.project(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        deep = torch.nn.functional.scaled_dot_product_attention(*(x[:, None] for x in (query, key, mixed)))
        return torch.nn.functional.gelu(deep[:, 0].tile(1, 2, 1, 1)).flatten(1)


IMAGE = Graph({"image": GraphInput("image", (3, 8, 8))}, ("features",), "batch")


def opset_of(path):
    return {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""]


class TestOperatorSets:
    @pytest.mark.parametrize("opset", [12, 13, 14, 17, 18, 20, 25])
    @pytest.mark.parametrize("size", [-1, 2])
    def test_written_as_asked(self, tmp_path, opset, size):
        path = tmp_path / "m.onnx"
        real = [{"image": torch.linspace(-2, 2, 2 * 3 * 64).view(2, 3, 8, 8)}]
        worst = export_onnx(
            Attentive(), path, IMAGE, ExportSettings(opset, size), card=ModelCard(task="t"), samples=real
        )
        assert worst < 1e-4
        assert opset_of(path) == opset
        assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]

    @pytest.mark.parametrize(
        ("opset", "written_as"), [(11, "gather"), (26, "gather"), (15, "grid_sample"), (21, "plugin")]
    )
    def test_refused_before_any_work(self, tmp_path, opset, written_as):
        settings = ExportSettings(opset, -1, deformable_attention=written_as)
        with pytest.raises(SpecError, match=r"export\.opset_version"):
            export_onnx(None, tmp_path / "m.onnx", IMAGE, settings, card=ModelCard(), samples=[])

    def test_a_set_that_the_exporter_does_not_reach(self, tmp_path, monkeypatch):
        def write(network, path, graph, settings):
            onnx.save(onnx.helper.make_model(onnx.GraphProto(), opset_imports=[onnx.helper.make_opsetid("", 18)]), path)

        monkeypatch.setattr("fiducial.deploy.onnx._write", write)
        with pytest.raises(SpecError, match="24: torch's exporter wrote 18 · set 18, or at most 20"):
            export_onnx(Attentive(), tmp_path / "m.onnx", IMAGE, ExportSettings(24, -1), card=ModelCard(), samples=[])
        assert not list(tmp_path.iterdir())


class TestLargeWeights:
    @pytest.mark.parametrize("opset", [17, 21])
    def test_go_into_one_file_beside_the_graph(self, tmp_path, monkeypatch, opset):
        monkeypatch.setattr("fiducial.deploy.onnx.MAX_BYTES", 100)
        (tmp_path / "m.onnx.data").write_bytes(b"of an older export")
        settings = ExportSettings(opset, -1)
        worst = export_onnx(Attentive(), tmp_path / "m.onnx", IMAGE, settings, card=ModelCard(), samples=[])
        assert worst < 1e-4
        assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
        assert (tmp_path / "m.onnx.data").stat().st_size >= 4 * 8 * 48  # the convolution's weights, float32
        assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1  # who may read one, may read both
        model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        named = {e.value for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location"}
        assert named == {"m.onnx.data"}


class TestNothingOfTheMachine:
    @pytest.mark.parametrize("opset", [12, 17, 20, 21])
    @pytest.mark.parametrize("verbose", [False, True])
    def test_is_in_the_file(self, tmp_path, monkeypatch, opset, verbose):
        monkeypatch.chdir(tmp_path)
        settings = ExportSettings(opset, -1, verbose)
        export_onnx(Attentive(), Path("m.onnx"), IMAGE, settings, card=ModelCard(task="t"), samples=[])
        content = Path("m.onnx").read_bytes()
        machine = [str(tmp_path), str(Path(__file__).parents[3]), str(Path.home()), socket.gethostname(), sys.prefix]
        for text in [*machine, ".py", "site-packages", "stack_trace", "forward", ".export-"]:
            assert text.encode() not in content

    def test_comments_at_any_depth(self):
        def value(name):
            made = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1], doc_string="/home/me/a.py")
            made.metadata_props.add(key="source", value="/home/me/a.py")
            return made

        def graph(name, *nodes):
            made = onnx.helper.make_graph(nodes, name, [], [value("y")], doc_string="/home/me/a.py")
            made.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "y"))
            made.initializer[0].doc_string = "/home/me/a.py"
            return made

        node = onnx.helper.make_node("If", ["x"], ["y"], doc_string="/home/me/a.py", then_branch=graph("deep"))
        node.attribute[0].doc_string = "/home/me/a.py"
        model = onnx.helper.make_model(graph("top", node), doc_string="/home/me/a.py")
        model.functions.append(onnx.FunctionProto(name="f", domain="d", doc_string="/home/me/a.py", node=[node]))
        forget_sources(model)
        assert b"/home/me" not in model.SerializeToString()
        assert model.graph.node[0].attribute[0].g.initializer[0].raw_data  # what counts is still there


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("opset", [17, 21])
    def test_a_diverged_network_is_not_exported(self, tmp_path, value, opset):
        network = Attentive()
        network.conv.bias.data[3] = value
        with pytest.raises(CheckpointError, match="the network gives NaN or infinite numbers"):
            export_onnx(network, tmp_path / "m.onnx", IMAGE, ExportSettings(opset, -1), card=ModelCard(), samples=[])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("have", "agrees"), [([1.0, 2.0], True), ([1.0, 2.5], False), ([1.0, float("nan")], False), ([1.0], False)]
    )
    def test_agreement(self, have, agrees):
        have, wanted = np.array(have, np.float32), np.array([1, 2], np.float32)
        if agrees:
            assert difference(Path("m.onnx"), "y", have, wanted) == 0
        else:
            with pytest.raises(CheckpointError, match=r"differs from torch|instead of"):
                difference(Path("m.onnx"), "y", have, wanted)


class TestWriting:
    def export(self, path):
        export_onnx(Attentive(), path, IMAGE, ExportSettings(17, -1), card=ModelCard(), samples=[])

    def test_a_full_disk_leaves_the_old_file(self, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        (tmp_path / "m.onnx").write_bytes(b"old")
        for what in ("onnx.save", "torch.onnx.export", "os.replace"):
            with monkeypatch.context() as patch:
                patch.setattr(what, full)
                with pytest.raises(CheckpointError, match=r"m\.onnx · cannot be written \(No space left.*MiB free"):
                    self.export(tmp_path / "m.onnx")
            assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"m.onnx": b"old"}

    def test_into_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot be written \(No such file"):
            self.export(tmp_path / "none/m.onnx")


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
        err = capfd.readouterr().err
        assert "WARNING" not in err  # TAO's default needs no word
        assert opset_of(Path("out/m.onnx")) == 17
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
        [
            ("m.etlt", "its format is NVIDIA's own"),
            ("file/m.onnx", "export.onnx_file · cannot write to"),
            ("m.pth", "m.pth does not end in .onnx · name it m.onnx"),
            ("model", "model does not end in .onnx · name it model.onnx"),
            ("folder.onnx", "folder.onnx is a folder · name the file: folder.onnx/model.onnx"),
            ("l" * 300 + ".onnx", "cannot write to"),
        ],
    )
    def test_export_refused(self, act, tmp_path, capfd, target, text):
        (tmp_path / "file").touch()
        (tmp_path / "folder.onnx").mkdir()
        assert act("export", "export.overwrite=true", "export.checkpoint=CHECKPOINT", f"export.onnx_file={target}") == 1
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
