"""What runs a model file, told by its name and, where a runtime asks, by what is in it."""

import json
from pathlib import Path

import pytest
import seek_runtime
import tiny_runtime
from tiny_task import LINE

from fiducial import cli
from fiducial.deploy import kinds
from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.kinds import ModelRuntime, register, runs_an_engine, runtime_of
from fiducial.errors import CheckpointError
from fiducial.prediction import Predictor


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(kinds, "RUNTIMES", list(kinds.RUNTIMES))


class TestRuntimeOf:
    @pytest.mark.parametrize(
        ("name", "runtime"),
        [
            ("m.pth", "torch"),
            ("m.safetensors", "torch"),
            ("M.PTH", "torch"),
            ("m.onnx", "onnxruntime"),
            *((f"m.{suffix}", "tensorrt") for suffix in ("engine", "trt", "plan")),
            ("m.xml", "openvino"),
        ],
    )
    def test_by_suffix(self, name, runtime):
        assert runtime_of(Path(name)).name == runtime

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("m.bin", r"of a kind that nothing here runs · .* \.pt, \.onnx"),  # OpenVINO keeps weights under this name
        ],
    )
    def test_refused(self, name, why):
        with pytest.raises(CheckpointError, match=why):
            runtime_of(Path(name))

    def test_refused_with_each_suffix_once(self):
        with pytest.raises(CheckpointError) as refused:
            runtime_of(Path("m.bin"))
        assert str(refused.value).count(".safetensors") == 1

    def test_content_decides_between_two_of_one_suffix(self, tmp_path, registry):
        def claims(path):
            return path.read_bytes().startswith(b"Q")

        register(ModelRuntime("quick", (".pth",), kinds.RUNTIMES[0].open, claims=claims))
        for content, name in ((b"Q", "quick"), (b"PK", "torch")):
            (tmp_path / "m.pth").write_bytes(content)
            assert runtime_of(tmp_path / "m.pth").name == name


class TestEngines:
    @pytest.mark.parametrize(
        ("section", "runs"),
        [
            ({"checkpoint": "a.pth", "trt_engine": "b.engine"}, False),
            ({"checkpoint": "", "trt_engine": "b.engine"}, True),
            ({"checkpoint": "???", "trt_engine": "b.engine"}, True),
            ({"checkpoint": "a.engine"}, True),
            ({"checkpoint": None, "trt_engine": "???"}, False),
            ({}, False),
        ],
    )
    def test_tao_s_rule(self, section, runs):
        assert runs_an_engine(section) is runs

    def test_the_folder_is_tao_deploys(self, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")
        Path("m.engine").touch()
        assert cli.main([LINE], ["evaluate", "-e", "spec.yaml", "evaluate.trt_engine=m.engine"], prog="tiny") == 1
        assert "an engine without its card" in capfd.readouterr().err
        assert [path.name for path in Path("r").iterdir()] == ["trt_evaluate"]
        Path("m.onnx").touch()
        assert cli.main([LINE], ["evaluate", "-e", "spec.yaml", "evaluate.trt_engine=m.onnx"], prog="tiny") == 1
        said = "m.onnx is no engine (.engine, .trt, .plan) · give it as evaluate.checkpoint"
        assert f"evaluate.trt_engine · {tmp_path}/{said}" in capfd.readouterr().err


class Lines(Predictor):
    """Runs a model that is one number in a text file."""

    runtime = "lines"

    def __init__(self, path):
        self.factor = float(path.read_text())

    def predict(self, batch):
        return {"y": batch["x"].sum(1) * self.factor}


def test_a_registered_runtime_serves_every_action(tmp_path, monkeypatch, registry):
    def open_lines(path, runtime, key):
        runtime.adopt(ModelCard.read(path))
        return Lines(path)

    register(ModelRuntime("lines", (".lines",), open_lines))
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")
    model = Path("m.lines")
    model.write_text("2.0")
    sidecar(model).write_text(json.dumps(ModelCard(details={"shift": 1.0}).plain()))
    assert cli.main([LINE], ["evaluate", "-e", "spec.yaml", "evaluate.checkpoint=m.lines"], prog="tiny") == 0
    written = json.loads(Path("r/evaluate/evaluate.json").read_text())
    assert written["runtime"] == "lines"
    rows = tiny_runtime.Rows(10)
    expected = [2 * (float(rows[i]["y"]) + 3 * 1.0) for i in range(10)]  # the card's shift, on each of 3 inputs
    assert [value for _, value in written["rows"]] == pytest.approx(expected, rel=1e-5)


class TestCard:
    def test_there_and_back(self):
        card = seek_runtime.Runtime(seek_runtime.Spec()).card()
        assert ModelCard.of(json.loads(json.dumps(card.plain()))) == card

    @pytest.mark.parametrize("said", [[], 3, {"inputs": {"x": {}}}, {"mean": 5}, {"mean": ["a"]}])
    def test_no_card(self, said, tmp_path):
        sidecar(tmp_path / "m.lines").write_text(json.dumps(said))
        with pytest.raises(CheckpointError, match="its model card cannot be read"):
            ModelCard.read(tmp_path / "m.lines")
