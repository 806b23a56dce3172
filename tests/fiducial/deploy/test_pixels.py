"""Graphs that take pixels compute what the network does of the normalised images, and are fed by the card."""

import logging

import numpy as np
import pytest
import tiny_runtime
import torch
from tiny_task import Spec
from torch import nn

from fiducial.data.normalization import Normalization
from fiducial.deploy.card import ModelCard
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.deploy.openvino_export import export_openvino
from fiducial.deploy.pixels import PixelInputs, PixelNetwork, with_preprocessing
from fiducial.errors import CheckpointError, SpecError
from fiducial.prediction import Graph, GraphInput

NORMALIZATION = Normalization((0.485, 0.456, 0.1), (0.229, 0.024, 1.5))
CARD = ModelCard(task="line", mean=NORMALIZATION.mean, std=NORMALIZATION.std)
GRAPH = Graph(
    {
        "part": GraphInput("part", (3, 4, 6), image=True),
        "goldens": GraphInput("goldens", (2, 3, 4, 6), image=True),
        "area": GraphInput("area", ()),
    },
    ("y",),
    "batch",
)


class Compare(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, part, goldens, area):
        tested, *others = (self.conv(x).flatten(1) for x in (part, goldens[:, 0], goldens[:, 1]))
        return (tested - others[0] * others[1]).abs().mean(1) + area


def batch(size):
    draw = np.random.default_rng(size).integers
    images = {
        name: draw(0, 256, (size, *shape), np.uint8) for name, shape in (("part", (4, 6, 3)), ("goldens", (2, 4, 6, 3)))
    }
    return {name: NORMALIZATION(pixels) for name, pixels in images.items()} | {"area": torch.rand(size)}, images


def opened(path):
    runtime = tiny_runtime.Runtime(Spec())
    runtime.graph = lambda: GRAPH
    return open_predictor(path, runtime)


@pytest.fixture(scope="module")
def network():
    return Compare().eval().requires_grad_(False)


def test_pixels_come_back_whole():
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)[None]
    inputs = PixelInputs(["x"], NORMALIZATION)
    back = inputs({"x": NORMALIZATION(pixels)})["x"]
    np.testing.assert_array_equal(back, pixels)


def test_finer_images_are_rounded_with_a_word(caplog):
    inputs = PixelInputs(["x"], Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    with caplog.at_level(logging.WARNING, "fiducial"):
        for _ in range(2):
            back = inputs({"x": torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1)})["x"]
    assert back.flatten().tolist() == [0, 128, 255]
    assert [record.message for record in caplog.records] == [
        "the model takes pixels of 8 bits: finer images, or otherwise normalised ones, are rounded"
    ]


def test_network(network):
    normalised, pixels = batch(3)
    with torch.no_grad():
        expected = network(*(normalised[name] for name in GRAPH.inputs))
        given = {name: torch.from_numpy(value) for name, value in pixels.items()} | {"area": normalised["area"]}
        got = PixelNetwork(network, GRAPH, NORMALIZATION)(*(given[name] for name in GRAPH.inputs))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("opset", "size"), [(13, -1), (17, 2), (21, -1)])
def test_exported(network, tmp_path, opset, size):
    path = tmp_path / "m.onnx"
    traced, graph, samples = with_preprocessing(network, GRAPH, [batch(2)[0]], CARD)
    card = CARD.stamped(network.state_dict())
    assert export_onnx(traced, path, graph, ExportSettings(opset, size), card=card, samples=samples) < 1e-4
    said = ModelCard.read(path)
    assert said.weights == card.weights
    assert {name: (t.shape, t.dtype, t.layout) for name, t in said.inputs.items()} == {
        "part": ((4, 6, 3), "uint8", "NHWC"),
        "goldens": ((2, 4, 6, 3), "uint8", "NHWC"),
        "area": ((), "float32", ""),
    }
    ir, worst = export_openvino(traced, path, graph, size, samples=samples)
    assert worst < 1e-4
    normalised, _ = batch(3)
    with torch.no_grad():
        expected = network(*(normalised[name] for name in GRAPH.inputs))
    for file in (path, ir):
        np.testing.assert_allclose(opened(file).predict(normalised)["y"], expected, rtol=1e-4, atol=1e-5)


def test_without_preprocessing_the_layout_is_torch_s(network, tmp_path):
    export_onnx(network, tmp_path / "m.onnx", GRAPH, ExportSettings(17, -1), card=CARD, samples=[])
    inputs = ModelCard.read(tmp_path / "m.onnx").inputs
    assert {name: (t.dtype, t.layout) for name, t in inputs.items()} == {
        "part": ("float32", "NCHW"),
        "goldens": ("float32", "NCHW"),
        "area": ("float32", ""),
    }


def test_a_network_without_images():
    graph = tiny_runtime.Runtime(Spec()).graph()
    with pytest.raises(SpecError, match=r"export\.preprocessing · the network takes no images"):
        with_preprocessing(tiny_runtime.Network(), graph, [], CARD)


def test_a_card_without_a_mean(network, tmp_path):
    with pytest.raises(CheckpointError, match="three of each are needed"):
        with_preprocessing(network, GRAPH, [], ModelCard())
