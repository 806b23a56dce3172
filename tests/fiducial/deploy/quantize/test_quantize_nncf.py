"""NNCF: from an exported graph to an evaluation in OpenVINO, through the actions."""

import onnx_models
import pytest
from tiny_task import LINE

from fiducial.actions.perform import perform
from fiducial.deploy.card import ModelCard
from fiducial.deploy.openvino_package import openvino
from fiducial.deploy.quantize.artefacts import quantizer_of
from fiducial.errors import CheckpointError, SpecError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs actions on one results folder; a checkpoint and its ONNX file are there."""
    folder = tmp_path_factory.mktemp("run")
    spec = {"results_dir": str(folder), "train": {"num_epochs": 1}, "quantize": {"backend": "openvino"}}
    perform([LINE], "train", spec)
    perform([LINE], "export", spec)

    def act(action, *overrides):
        return perform([LINE], action, spec, overrides)

    act.checkpoint = next((folder / "train").glob("model_epoch*.pth"))
    return act


def types(path):
    return [operation.get_type_name() for operation in openvino().Core().read_model(path).get_ops()]


def test_static_through_the_chain(run, capsys):
    made = run("quantize", "quantize.mode=static_ptq")
    assert capsys.readouterr().out == ""
    path = made.files[0]
    assert path.name == "quantized_model.xml"
    assert path.with_suffix(".bin").is_file()
    assert "FakeQuantize" in types(path)
    assert ModelCard.read(path).details["quantizer"].startswith("nncf")
    assert made.kpis["test_mean"] == pytest.approx(
        made.kpis["test_mean_before"], abs=0.3
    )  # eight bits of few, wide rows
    found = run("evaluate", "evaluate.is_quantized=true")
    assert found.kpis["test_mean"] == pytest.approx(made.kpis["test_mean"], rel=1e-5)
    assert run("evaluate", f"evaluate.checkpoint={path}").kpis == found.kpis  # a graph needs no flag


def test_weights_alone(run, tmp_path):
    made = run("quantize", f"quantize.results_dir={tmp_path}", "quantize.compare=false")
    assert "FakeQuantize" not in types(made.files[0])
    assert quantizer_of(made.files[0]).startswith("nncf")
    assert sorted(path.name for path in tmp_path.glob("quantized*")) == [
        *("quantized_model.bin", "quantized_model.xml", "quantized_model.xml.card.json"),
    ]


def test_what_it_does_not_take(run, tmp_path):
    where = (f"quantize.results_dir={tmp_path}", "quantize.compare=false", "quantize.mode=static_ptq")
    with pytest.raises(SpecError, match="'Conv2d' matches no layer"):
        run("quantize", *where, "quantize.layers=[{module_name: Conv2d, weights: {dtype: int8}}]")
    with pytest.raises(SpecError, match="2 layers could be quantized, and none is"):
        run("quantize", *where, "quantize.skip_names=[Linear]")
    with pytest.raises(SpecError, match="NNCF refuses them"):
        run("quantize", *where, "quantize.backend_kwargs={speed: 1}")
    with pytest.raises(CheckpointError, match="backend openvino takes an exported"):
        run("quantize", *where, f"quantize.model_path={run.checkpoint}")
    other = onnx_models.write(tmp_path / "other.onnx", card={"task": "seek"})
    with pytest.raises(CheckpointError, match=r"other.onnx · a model of task seek · give a model of task line"):
        run("quantize", *where, f"quantize.model_path={other}")
