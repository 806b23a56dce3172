"""Every task's exported graph, built by TensorRT for RTX, which needs no GPU for it, in each precision."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import calibrate

sys.path.append(str(Path(__file__).parent / "support"))

import small_graphs

from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.deploy.pixels import with_preprocessing
from fiducial.deploy.tensorrt import gpu
from fiducial.deploy.tensorrt.build import BuildSettings, build
from fiducial.deploy.tensorrt.compare import SAME_8_BITS, TOLERANCES, difference, run_onnx
from fiducial.deploy.tensorrt.flavour import load
from fiducial.deploy.tensorrt.inspect import check_types, types_of_network
from fiducial.deploy.tensorrt.layers import LayerRules
from fiducial.deploy.tensorrt.precision import typed
from fiducial.deploy.tensorrt.runner import Runner
from fiducial.deploy.tensorrt.source import Source
from fiducial.errors import CheckpointError, SpecError
from fiducial.prediction import Graph, GraphInput

SETTINGS = BuildSettings((1, 2, 4), capabilities=("8.6", "8.9"))
TYPES = {"fp16": 1e-2, "int8": 0.2, "fp8": 0.2}
"""How far a graph in other types may be from the exported one here, whose weights are random."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """``source(name)``: the exported graph of a network, written once."""
    folder, kept = tmp_path_factory.mktemp("graphs"), {}

    def find(name):
        if name not in kept:
            path, graph = small_graphs.written(name, folder / f"{name.replace(', ', '_')}.onnx")
            kept[name] = Source.read(path, plugins=False), graph
        return kept[name]

    return find


def rules(data_type, *items, rest="fp16"):
    return LayerRules.of(SimpleNamespace(data_type=data_type, layers_precision=list(items), rest=rest))


def feeds(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((2, *entry.shape)).astype(np.float32) for name, entry in graph.inputs.items()}


def written(found, folder, wanted):
    source, graph = found
    batches = [feeds(graph, seed) for seed in (0, 1)]
    return typed(source, folder, wanted, sample=batches[0], batches=batches)


def built(path, source, wanted, settings=SETTINGS):
    """What the layers of a network that an engine was built from compute in."""
    result = build(load("rtx"), path, source.inputs, settings)
    assert result.engine.nbytes > 10_000
    found = types_of_network(result.network)
    check_types(found, wanted, path)
    inputs = [result.network.get_input(i) for i in range(result.network.num_inputs)]
    outputs = [result.network.get_output(i) for i in range(result.network.num_outputs)]
    assert {tensor.dtype.name for tensor in (*inputs, *outputs)} == {"FLOAT"}  # whoever runs it sees no difference
    return found


@pytest.mark.parametrize("name", small_graphs.GRAPHS)
def test_float32(name, source, tmp_path):
    found, wanted = source(name), rules("fp32")
    assert written(found, tmp_path, wanted) == found[0].path  # as it was exported
    types = built(found[0].path, found[0], wanted)
    assert types["fp32"] > 5
    assert set(types) == {"fp32"}


@pytest.mark.parametrize(
    ("name", "data_type"),
    [("classify", "fp16"), ("adapter", "fp16"), ("mal", "fp16"), ("segment", "int8"), ("mlrecog", "int8")],
)
def test_other_types(name, data_type, source, tmp_path, caplog):
    found, wanted = source(name), rules(data_type)
    path = written(found, tmp_path, wanted)
    assert not [record for record in caplog.records if record.name.startswith(("modelopt", "onnxscript"))]
    types = built(path, found[0], wanted)
    assert types["fp16"] > types.get("fp32", 0)
    if data_type == "int8":
        assert types["quantized to int8"] > 5
    graph = found[1]
    expected, given = (run_onnx(file, feeds(graph), graph.outputs) for file in (found[0].path, path))
    assert difference(path, given, expected, TYPES[data_type], data_type) > 0


def test_named_layers_stay_as_they_are(source, tmp_path):
    found = source("classify, euclidean")
    kept = [name for name in found[0].nodes if name.startswith("/backbone/blocks.0/attn")]
    wanted = rules("fp16", "/backbone/blocks.0/attn*:fp32")
    types = built(written(found, tmp_path, wanted), found[0], wanted)
    model = onnx.load(found[0].path)
    products = [n for n in model.graph.node if n.name in kept and n.op_type in ("MatMul", "Gemm", "Conv")]
    assert types["fp32"] == len(products) > 0
    with pytest.raises(SpecError, match=r"no node of the ONNX file is '/backbone/blocks.9/attn'"):
        written(found, tmp_path, rules("fp16", "/backbone/blocks.9/attn:fp32"))


def test_a_file_that_is_quantized_is_built_as_it_is(source, tmp_path):
    found = source("mlrecog")
    path = written(found, tmp_path, rules("int8", rest="fp32"))
    again = Source.read(path, plugins=False)
    assert again.is_quantized
    assert typed(again, tmp_path, rules("int8", rest="fp32"), sample={}, batches=[]) == path  # without images
    types = built(path, again, rules("int8", rest="fp32"))
    assert set(types) == {"fp32", "quantized to int8"}


def test_fp8_for_gpus_that_have_it(source, tmp_path):
    found, wanted = source("mlrecog"), rules("fp8", rest="fp32")
    path = written(found, tmp_path, wanted)
    assert calibrate.create_calibrator.__module__.startswith("onnxruntime")  # ModelOpt puts its own there
    with pytest.raises(CheckpointError, match="sm86"):
        built(path, found[0], wanted)
    types = built(path, found[0], wanted, replace(SETTINGS, capabilities=("8.9", "12.0")))
    assert types["quantized to fp8"] > 5


def test_weights_that_stand_beside_the_graph(source, tmp_path):
    found, graph = source("mlrecog")
    (tmp_path / "work").mkdir()
    model = onnx.load(found.path)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=1024)
    apart, wanted = Source.read(tmp_path / "m.onnx", plugins=False), rules("int8", rest="fp32")
    path = written((apart, graph), tmp_path / "work", wanted)
    assert path.with_name(f"{path.name}.data").is_file()
    assert built(path, apart, wanted)["quantized to int8"] > 5


@pytest.mark.tensorrt
@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
@pytest.mark.parametrize("data_type", ["fp32", "fp16", "int8", "fp8"])
def test_engines_compute_what_their_graphs_do(data_type, flavour, source, tmp_path):
    here = gpu.find()
    if here is None:
        pytest.skip("needs a GPU")
    library, wanted = load(flavour), rules(data_type)
    for name in small_graphs.GRAPHS:
        found, graph = source(name)
        (tmp_path / name).mkdir()
        path, values = written((found, graph), tmp_path / name, wanted), feeds(graph)
        result = build(library, path, found.inputs, BuildSettings((1, 2, 4), tf32=False))
        runner = Runner(library, result.engine, path, here.device)
        assert runner.batches == (1, 4)
        given = runner.run({key: torch.from_numpy(value) for key, value in values.items()}, graph.outputs)
        have = {key: value.float().cpu().numpy() for key, value in zip(graph.outputs, given, strict=True)}
        tolerance = SAME_8_BITS if wanted.small else TOLERANCES[data_type]
        difference(path, have, run_onnx(path, values, graph.outputs), tolerance, name)


class TestBuilder:
    def test_gpus_that_the_library_does_not_know(self, source):
        found = source("mlrecog")[0]
        with pytest.raises(SpecError, match=r"5\.2: TensorRT for RTX .* does not build for it · choose among .*8\.6"):
            build(load("rtx"), found.path, found.inputs, BuildSettings((1, 1, 1), capabilities=("5.2",)))

    def test_what_it_cannot_build_is_told_in_its_words(self, source):
        found = source("mlrecog")[0]
        with pytest.raises(CheckpointError, match=r"cannot build it: .*Turing"):  # has no float32 products for these
            build(load("rtx"), found.path, found.inputs, BuildSettings((1, 1, 1), capabilities=("7.5",)))

    def test_what_it_cannot_parse(self, tmp_path):
        node = onnx.helper.make_node("NonMaxNothing", ["x"], ["y"], domain="elsewhere")
        value = onnx.helper.make_tensor_value_info
        sides = [value(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
        graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:])
        opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("elsewhere", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
        with pytest.raises(CheckpointError, match=r"TensorRT for RTX cannot parse it.*NonMaxNothing"):
            build(load("rtx"), tmp_path / "m.onnx", [], SETTINGS)

    def test_graphs_that_take_pixels(self, tmp_path):
        network, picture = torch.nn.Conv2d(3, 4, 3), GraphInput("image", (3, 8, 8), image=True)
        graph, card = Graph({"image": picture}, ("y",), "batch"), ModelCard(mean=(0.5,) * 3, std=(0.25,) * 3)
        whole, graph, _ = with_preprocessing(network, graph, [], card)
        export_onnx(whole, tmp_path / "m.onnx", graph, ExportSettings(17, -1), card=card, samples=[])
        found = Source.read(tmp_path / "m.onnx", plugins=False)
        found.check(graph)
        result = build(load("rtx"), found.path, found.inputs, SETTINGS)
        assert result.network.get_input(0).dtype.name == "UINT8"
        assert types_of_network(result.network) == {"fp32": 1}

    def test_timings_are_kept(self, source, tmp_path, caplog):
        found, path = source("mlrecog")[0], tmp_path / "timings"
        settings = BuildSettings((1, 1, 1), capabilities=("8.6",), timing_cache=path)
        for _ in range(2):
            build(load("rtx"), found.path, found.inputs, settings)
            assert len(path.read_bytes()) > 20
        assert "no timings" not in caplog.text
