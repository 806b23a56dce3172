"""Models in OpenVINO's own format: run like any other, refused where they are not whole, and nobody is told."""

import copy
import ctypes
import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import tiny_runtime
import torch
from onnx import TensorProto, helper
from onnx_models import value
from tiny_task import LINE, Spec

from fiducial import cli
from fiducial.deploy import openvino_package
from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.openvino_export import export_openvino
from fiducial.deploy.openvino_package import openvino
from fiducial.errors import CheckpointError, MissingDependencyError

ROWS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def write(path, *, shape=None, card=None, **parts):
    """A graph in OpenVINO's format, the sum of each row unless ``parts`` say another; with ``shape`` for its input."""
    onnx_file = onnx_models.write(path.with_suffix(".onnx"), **parts)
    model = openvino().Core().read_model(onnx_file)
    onnx_file.unlink()
    if shape is not None:
        model.reshape(shape)
    openvino().save_model(model, path, compress_to_fp16=False)
    if card is not None:
        card.write_beside(path)
    return path


def opened(path, **graph):
    runtime = tiny_runtime.Runtime(Spec())
    runtime.graph = lambda: tiny_runtime.Graph({"x": tiny_runtime.GraphInput("x", (3,))}, ("y",), "batch", **graph)
    return open_predictor(path, runtime)


def refused(path, **graph):
    with pytest.raises(CheckpointError) as caught:
        opened(path, **graph).predict({"x": ROWS})
    assert not [problem for problem in caught.value.problems if "\n" in str(problem)]
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.xml"


class TestRunning:
    @pytest.mark.parametrize("rows", [1, 2])
    def test_any_batch(self, path, rows):
        predictor = opened(write(path))
        assert (predictor.runtime, predictor.batch_size, predictor.most) == ("openvino", None, None)
        np.testing.assert_allclose(predictor.predict({"x": ROWS[:rows]})["y"], [6, 15][:rows])

    @pytest.mark.parametrize(("shape", "fixed", "most", "least"), [([2, 3], 2, None, None), (["2..4", 3], None, 4, 2)])
    def test_what_the_batch_axis_allows(self, path, shape, fixed, most, least):
        predictor = opened(write(path, shape=openvino().PartialShape(str(shape).replace("'", ""))))
        assert (predictor.batch_size, predictor.most, predictor.padded_to) == (fixed, most, least)
        x = torch.arange(15.0).view(5, 3)
        for size in (1, 5):
            np.testing.assert_allclose(predictor.predict({"x": x[:size]})["y"], x[:size].sum(1))

    def test_results_do_not_change_with_the_next_batch(self, path):
        predictor = opened(write(path))
        first = predictor.predict({"x": ROWS})["y"]
        predictor.predict({"x": 7 * ROWS})
        np.testing.assert_allclose(first, [6, 15])

    def test_threads_are_those_of_torch(self, path):
        predictor = opened(write(path))
        compiled = predictor._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino().Type.f32
        assert predictor.facts()["threads"] == str(torch.get_num_threads())

    def test_half_numbers_are_converted(self, path):
        kind = TensorProto.FLOAT16
        write(path, inputs=[value("x", kind=kind)], outputs=[value("y", ("b",), kind)])
        np.testing.assert_allclose(opened(path).predict({"x": ROWS})["y"], [6, 15])


class TestRefused:
    def test_other_inputs_and_outputs(self, path):
        nodes = [helper.make_node("ReduceSum", ["z", "axis"], ["other"], keepdims=0)]
        write(path, nodes=nodes, inputs=[value("z")], outputs=[value("other", ("b",))])
        assert all(said in refused(path) for said in ("no input 'x' (it has z)", "no output 'y' (it has other)"))

    def test_another_size(self, path):
        assert "input x is [4], the spec composes [3]" in refused(write(path, inputs=[value("x", ("b", 4))]))

    def test_another_task(self, path):
        assert "a model of task other" in refused(write(path, card=ModelCard(task="other")))

    def test_random_numbers(self, path):
        model = openvino().Core().read_model(write(path))
        (parameter,) = model.get_parameters()
        ops = openvino().opset13
        shape = ops.shape_of(ops.reduce_sum(parameter, ops.constant(1), False))
        drawn = ops.random_uniform(shape, *(ops.constant(np.float32(end)) for end in (0, 1)), "f32")
        drawn.output(0).set_names({"y"})
        openvino().save_model(openvino().Model([drawn], [parameter]), path)
        assert "draws random numbers (RandomUniform)" in refused(path)

    def test_without_weights(self, path):
        write(path).with_suffix(".bin").unlink()
        text = refused(path)
        assert "m.bin · no such file · copy it beside m.xml" in text

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            *((content, "not a graph of OpenVINO") for content in (b"", b"no xml", bytes(100), b"<net><layer></net>")),
            (b"<annotation/>", "an XML document of 'annotation'"),
            (b"<!DOCTYPE net><net/>", "a document type"),
            (b"<net></net>", "OpenVINO cannot load it"),
        ],
    )
    def test_no_graph(self, path, content, said):
        write(path).write_bytes(content)
        assert said in refused(path)

    def test_cut_off_anywhere(self, path, capfd):
        content = write(path).read_bytes().rstrip()
        for end in range(0, len(content), 50):
            path.write_bytes(content[:end])
            refused(path)
        assert capfd.readouterr().err == ""  # OpenVINO tries what it has for other formats, and some of it prints

    def test_weights_that_end_too_early(self, path):
        weights = write(path).with_suffix(".bin")
        weights.write_bytes(weights.read_bytes()[:3])
        assert "OpenVINO cannot load it" in refused(path)

    def test_weights_that_the_card_does_not_know(self, path):
        weights = write(path, card=ModelCard(task="line")).with_suffix(".bin")
        weights.write_bytes(bytes(len(weights.read_bytes())))
        assert "m.xml.card.json · the card of another m.xml" in refused(path)

    def test_nothing_there(self, path):
        assert "m.xml · no such file" in refused(path)

    def test_openvino_is_not_installed(self, path, monkeypatch):
        write(path)
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'fiducial\[openvino\]'"):
            opened(path)


@pytest.mark.parametrize("again", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_gives_the_same(path, again):
    predictor = opened(write(path))
    assert torch.equal(again(predictor).predict({"x": ROWS})["y"], predictor.predict({"x": ROWS})["y"])


def test_a_pickled_one_whose_weights_have_changed(path):
    kept = pickle.dumps(opened(write(path)))
    path.with_suffix(".bin").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="has changed since"):
        pickle.loads(kept)


def test_evaluates_by_its_card(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\n")
    write(path, card=ModelCard(task="line", details={"shift": 1.0}))
    assert cli.main([LINE], ["evaluate", "-e", "spec.yaml", f"evaluate.checkpoint={path}"], prog="tiny") == 0
    written = json.loads(Path("r/evaluate/evaluate.json").read_text())
    assert written["runtime"] == "openvino"
    rows = tiny_runtime.Rows(10)
    assert [y for _, y in written["rows"]] == pytest.approx([float(rows[i]["y"]) + 3 for i in range(10)], rel=1e-5)


NOTHING_SENT = """
    import os, socket, sys, threading, urllib.request
    from pathlib import Path

    def refuse(*_, **__):
        os.write(2, b"the network is asked\\n")
        os._exit(7)

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (urllib.request, "urlopen")):
        setattr(owner, name, refuse)
    from fiducial.deploy.openvino_package import nncf, openvino
    (openvino if sys.argv[1] == "openvino" else nncf)()
    from openvino import convert_model
    convert_model(sys.argv[2])
    assert [*Path.home().iterdir()] == [], [*Path.home().iterdir()]
    assert threading.active_count() == 1
"""


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_nobody_is_told(tmp_path, package):
    model, home = onnx_models.write(tmp_path / "m.onnx"), tmp_path / "home"
    home.mkdir()
    root = Path(openvino_package.__file__).parents[2]
    environment = {"HOME": str(home), "PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", textwrap.dedent(NOTHING_SENT), package, str(model)]
    subprocess.run(command, env=environment, check=True, timeout=300)


def test_card_beside_an_onnx_file_without_one(tmp_path):
    path = onnx_models.write(tmp_path / "m.onnx")
    card = ModelCard(task="line", mean=(0.5,), details={"shift": 2.0})
    assert card.write_beside(path) == sidecar(path)
    read = ModelCard.read(path)
    assert (read.task, read.mean, read.details) == ("line", (0.5,), {"shift": 2.0})
    path.write_bytes(onnx_models.write(tmp_path / "other.onnx", opset=16).read_bytes())
    with pytest.raises(CheckpointError, match=r"the card of another m\.onnx"):
        ModelCard.read(path)


class TestExport:
    @pytest.fixture
    def act(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("spec.yaml").write_text("results_dir: r\nwandb: {enable: false}\nexport: {checkpoint: m.pth}\n")
        torch.manual_seed(0)
        weights = {f"model.{key}": value for key, value in tiny_runtime.Network().state_dict().items()}
        torch.save({"state_dict": weights}, "m.pth")
        return lambda action, *words: cli.main([LINE], [action, "-e", "spec.yaml", *words], prog="tiny")

    def test_both_formats_give_the_same(self, act, capfd):
        assert act("export", "export.openvino=true", "export.simplify=true") == 0
        files = {"m.onnx", "m.onnx.card.json", "m.xml", "m.bin", "m.xml.card.json"}
        assert {path.name for path in Path().glob("m.*")} == {"m.pth", *files}
        said = capfd.readouterr().err
        assert re.search(r"m\.onnx: \S+ MB, outputs differ from torch's by at most \S+ of the largest", said)
        assert re.search(r"m\.xml: \S+ MB, outputs differ from torch's by at most \S+ of the largest", said)
        assert re.search(r"onnxslim left \d+ of \d+ nodes", said)
        rows = {}
        for model in ("m.pth", "m.onnx", "m.xml"):
            assert act("evaluate", f"evaluate.checkpoint={model}") == 0
            rows[model] = json.loads(Path("r/evaluate/evaluate.json").read_text())["rows"]
        for model in ("m.onnx", "m.xml"):
            np.testing.assert_allclose(rows[model], rows["m.pth"], atol=1e-5)
        assert ModelCard.read(Path("m.xml")).weights == ModelCard.read(Path("m.onnx")).weights != ""

    def test_what_stands_there_is_kept(self, act, capfd):
        for name in ("m.xml", "m.bin"):
            Path(name).write_text("mine")
        assert act("export", "export.openvino=true") == 1
        assert "m.xml exists already · set export.overwrite=true" in capfd.readouterr().err
        assert not Path("m.onnx").exists()
        assert act("export", "export.openvino=true", "export.onnx_file=m.onnx") == 1
        assert act("export", "export.openvino=true", "export.overwrite=true") == 0
        assert Path("m.xml").stat().st_size > 100

    def test_without_openvino_nothing_is_written(self, act, monkeypatch, capfd):
        monkeypatch.setitem(sys.modules, "openvino", None)
        assert act("export", "export.openvino=true") == 1
        assert "pip install 'fiducial[openvino]'" in capfd.readouterr().err
        assert not Path("m.onnx").exists()

    def test_of_a_quantized_checkpoint_it_would_be_another_model(self, act, capfd):
        assert act("export", "export.openvino=true", "export.is_quantized=true") == 1
        said = capfd.readouterr().err
        assert "export.openvino · true, with export.is_quantized" in said
        assert "quantize.backend=openvino" in said

    def test_a_wrong_graph_gets_no_name(self, act, tmp_path):
        assert act("export") == 0
        other = tiny_runtime.Network().eval()
        with pytest.raises(CheckpointError, match=r"m\.xml · y differs from torch by"):
            export_openvino(other, tmp_path / "m.onnx", tiny_runtime.Runtime(Spec()).graph(), -1, samples=[])
        assert not [*tmp_path.glob("*.xml"), *tmp_path.glob("*.bin")]


class TestSignals:
    def test_handlers_have_the_stack_that_they_had(self, path):
        """Of two models that are forgotten in the order they came, the first one's stack would stay, unmapped."""

        def stack():
            now = openvino_package._SignalStack()
            ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
            return now.sp, now.flags, now.size

        before, taken = stack(), []
        handler = signal.signal(signal.SIGUSR1, lambda *_: taken.append(1))
        try:
            write(path)
            models = [opened(path), opened(path)]
            assert stack() == before
            while models:
                models.pop(0)
                gc.collect()
                assert stack() == before
            os.kill(os.getpid(), signal.SIGUSR1)
            assert taken == [1]
        finally:
            signal.signal(signal.SIGUSR1, handler)
