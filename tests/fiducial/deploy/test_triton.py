"""Model repositories are what Triton Inference Server reads: its own schema says so."""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import onnx_models
import onnxruntime
import pytest
import tiny_runtime
import torch
from google.protobuf import text_format
from tiny_task import LINE

from fiducial import cli
from fiducial.actions.serving import publish
from fiducial.deploy.card import ModelCard, TensorCard
from fiducial.deploy.tensorrt.rules import check_engine
from fiducial.deploy.triton import add_to_repository, config_text
from fiducial.errors import CheckpointError
from fiducial.spec.common import TritonSection
from fiducial.spec.engine import GenTrtEngineSection

CARD = ModelCard(
    task="segment",
    inputs={"image": TensorCard((4, 6, 3), "uint8", "NHWC"), "area": TensorCard(())},
    outputs={"logits": TensorCard((2, 4, 6), "float16"), "count": TensorCard((), "int64")},
    classes=('ä "quoted" \\ name', "b\n"),
)


@pytest.fixture(scope="module")
def schema():
    """Triton's ``model_config.proto``, from its client package, whose other parts need a gRPC client."""
    (folder,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(folder) / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an older protobuf than the one that is installed
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(schema):
    return lambda text: text_format.Parse(text, schema.ModelConfig())


def tensor(schema, entry):
    kind = schema.DataType.Name(entry.data_type)
    return entry.name, kind, list(entry.dims), list(entry.reshape.shape) if entry.HasField("reshape") else None


class TestConfig:
    def test_an_open_batch(self, parse, schema):
        config = parse(config_text("parts", Path("m.onnx"), CARD, batch_size=-1, max_batch_size=8))
        assert (config.name, config.backend, config.default_model_filename) == ("parts", "onnxruntime", "model.onnx")
        assert config.max_batch_size == 8
        assert config.dynamic_batching.max_queue_delay_microseconds == 1000
        assert [tensor(schema, entry) for entry in config.input] == [
            ("image", "TYPE_UINT8", [4, 6, 3], None),
            ("area", "TYPE_FP32", [1], []),  # without an axis of its own
        ]
        assert [tensor(schema, entry) for entry in config.output] == [
            ("logits", "TYPE_FP16", [2, 4, 6], None),
            ("count", "TYPE_INT64", [1], []),
        ]
        assert ModelCard.of(json.loads(config.parameters["fiducial"].string_value)) == CARD

    def test_a_fixed_batch(self, parse, schema):
        config = parse(config_text("parts", Path("m.onnx"), CARD, batch_size=2, max_batch_size=8))
        assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
        assert [tensor(schema, entry)[2:] for entry in config.input] == [([2, 4, 6, 3], None), ([2], None)]

    def test_one_at_a_time(self, parse):
        config = parse(config_text("parts", Path("m.onnx"), CARD, batch_size=-1, max_batch_size=1))
        assert (config.max_batch_size, config.HasField("dynamic_batching")) == (1, False)

    @pytest.mark.parametrize(
        ("file", "backend", "called"),
        [
            ("m.engine", "tensorrt", "model.plan"),
            ("m.plan", "tensorrt", "model.plan"),
            ("m.xml", "openvino", "model.xml"),
        ],
    )
    def test_other_kinds(self, parse, file, backend, called):
        config = parse(config_text("parts", Path(file), CARD, batch_size=-1, max_batch_size=8))
        assert (config.backend, config.default_model_filename) == (backend, called)

    @pytest.mark.parametrize(
        ("file", "card", "said"),
        [
            ("m.pth", CARD, "of a kind that Triton does not run"),
            ("m.onnx", ModelCard(), "does not say what its inputs and outputs are"),
            (
                "m.onnx",
                ModelCard(inputs={"x": TensorCard((1,), "complex64")}, outputs=CARD.outputs),
                "x is a complex64",
            ),
        ],
    )
    def test_refused(self, file, card, said):
        with pytest.raises(CheckpointError, match=said):
            config_text("parts", Path(file), card, batch_size=-1, max_batch_size=8)


class TestRepository:
    def add(self, repository, model, **more):
        sizes = {"batch_size": -1, "max_batch_size": 4, **more}
        return add_to_repository(repository, "parts", model, CARD, **sizes)

    def test_each_model_is_the_next_version(self, tmp_path):
        first = onnx_models.write(tmp_path / "m.onnx")
        written = self.add(tmp_path / "models", first)
        folder = tmp_path / "models" / "parts"
        assert written == (folder / "1" / "model.onnx", folder / "config.pbtxt")
        assert (folder / "1" / "model.onnx").read_bytes() == first.read_bytes()
        (folder / "9").mkdir()
        self.add(tmp_path / "models", first, max_batch_size=2)
        assert {path.name for path in folder.iterdir()} == {"1", "9", "10", "config.pbtxt"}
        assert "max_batch_size: 2" in (folder / "config.pbtxt").read_text()

    @pytest.mark.parametrize(
        ("model", "weights", "called"),
        [("m.xml", "m.bin", ("model.xml", "model.bin")), ("m.onnx", "m.onnx.data", ("model.onnx", "m.onnx.data"))],
    )
    def test_weights_beside_the_graph_come_along(self, tmp_path, model, weights, called):
        for name in (model, weights):
            (tmp_path / name).write_text(name)
        self.add(tmp_path / "models", tmp_path / model)
        written = {path.name: path.read_text() for path in (tmp_path / "models" / "parts" / "1").iterdir()}
        assert written == dict(zip(called, (model, weights), strict=True))

    def test_no_folder(self, tmp_path):
        model = onnx_models.write(tmp_path / "m.onnx")
        (tmp_path / "models").write_text("a file")
        with pytest.raises(CheckpointError, match=r"models/parts · cannot be written"):
            self.add(tmp_path / "models", model)


class TestExport:
    @pytest.fixture
    def act(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\nexport: {checkpoint: m.pth}\n")
        weights = {f"model.{key}": value for key, value in tiny_runtime.Network().state_dict().items()}
        torch.save({"state_dict": weights}, "m.pth")
        return lambda *words: cli.main([LINE], ["export", "-e", "spec.yaml", *words], prog="tiny")

    @pytest.mark.parametrize("size", [-1, 2])
    def test_the_configuration_says_what_the_graph_takes(self, act, parse, size):
        assert act("export.triton.repository=models", f"export.batch_size={size}") == 0
        config = parse(Path("models/m/config.pbtxt").read_text())
        session = onnxruntime.InferenceSession("models/m/1/model.onnx", providers=["CPUExecutionProvider"])
        for entries, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            for entry, node in zip(entries, nodes, strict=True):
                dims = list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)
                batch = ["batch"] if config.max_batch_size else []
                assert (entry.name, [*batch, *dims]) == (node.name, node.shape)
        assert config.max_batch_size == (16 if size < 0 else 0)
        x = np.zeros((2, 3), np.float32)
        assert session.run(None, {"x": x})[0].shape == (2,)

    @pytest.mark.parametrize("name", ["a/b", ".hidden", " "])
    def test_names_that_are_none(self, act, name, capfd):
        assert act("export.triton.repository=models", f"export.triton.name='{name}'") == 1
        assert "export.triton.name" in capfd.readouterr().err
        assert not Path("m.onnx").exists()


def test_an_engine_takes_no_more_items_than_it_was_built_for(tmp_path, parse):
    engine = tmp_path / "boards.engine"
    engine.write_bytes(b"engine")
    CARD.write_beside(engine)
    section = TritonSection(repository=str(tmp_path / "models"), max_batch_size=16)
    written = publish(section, engine, batch_size=-1, most=4)
    assert [path.relative_to(tmp_path / "models").as_posix() for path in written] == [
        "boards/1/model.plan",
        "boards/config.pbtxt",
    ]
    assert parse(written[-1].read_text()).max_batch_size == 4
    assert publish(TritonSection(), engine, batch_size=-1) == ()


def test_triton_runs_no_engine_of_rtx():
    section = GenTrtEngineSection.model_validate({"tensorrt": {"flavor": "rtx"}, "triton": {"repository": "models"}})
    assert [problem.where for problem in check_engine(section)] == ["gen_trt_engine.triton.repository"]
