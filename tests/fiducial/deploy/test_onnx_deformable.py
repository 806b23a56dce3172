"""Exporting networks with deformable attention, in each of its formulations."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
import torch

from fiducial.backbones.dinov2 import DinoV2Pyramid, DinoV2Shape
from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.prediction import Graph, GraphInput

GRAPH = Graph({"x": GraphInput("x", (3, 64, 64))}, ("p0", "p1", "p2", "p3"), "batch")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return DinoV2Pyramid(DinoV2Shape(dim=32, depth=4, heads=2, hidden=48), grid=4, heads=4, planes=8).eval()


def written(
    network: torch.nn.Module, path: Path, formulation: str, batch_size: int = -1, opset: int = 17
) -> tuple[float, set[str]]:
    settings = ExportSettings(opset, batch_size, deformable_attention=formulation)
    worst = export_onnx(network, path, GRAPH, settings, card=ModelCard(task="test"), samples=[])
    return worst, {f"{node.domain}::{node.op_type}" for node in onnx.load(str(path)).graph.node}


@pytest.mark.parametrize(
    ("formulation", "opset"), [("gather", 12), ("gather", 17), ("grid_sample", 16), ("grid_sample", 20)]
)
def test_runs_in_onnxruntime_as_in_torch(network, tmp_path, formulation, opset):
    worst, nodes = written(network, tmp_path / "model.onnx", formulation, batch_size=2, opset=opset)
    assert worst < 1e-4  # compared with torch on random inputs before the file got its name
    assert ("::GridSample" in nodes) == (formulation == "grid_sample")


def test_plugin_is_one_node_of_tensorrt(network, tmp_path):
    worst, nodes = written(network, tmp_path / "model.onnx", "plugin")
    assert "nvidia::MultiscaleDeformableAttnPlugin_TRT" in nodes
    assert math.isnan(worst)  # nothing but TensorRT runs it
    opsets = {entry.domain: entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import}
    assert opsets["nvidia"] == opsets[""]


def test_nothing_of_the_machine_is_in_a_plugins_graph(network, tmp_path):
    written(network, tmp_path / "model.onnx", "plugin")
    content = (tmp_path / "model.onnx").read_bytes()
    assert not [text for text in (b".py", b"site-packages", str(tmp_path).encode()) if text in content]
