"""Every task's network, rounded to 8 bits by ModelOpt in torch, is exported as a graph that rounds the same."""

import sys
from pathlib import Path

import onnx
import pytest
import torch

sys.path.append(str(Path(__file__).parent / "support"))

import small_graphs

from fiducial.deploy import onnx as exporting
from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.deploy.quantize.modelopt_torch import KINDS, check_exportable, quantize
from fiducial.deploy.quantize.patterns import INT8
from fiducial.deploy.verification import batches_for, outputs_of
from fiducial.errors import CheckpointError


@pytest.mark.slow
@pytest.mark.parametrize("name", small_graphs.GRAPHS)
def test_exported(name, tmp_path):
    make, graph = small_graphs.GRAPHS[name]
    torch.manual_seed(0)
    network = make().eval()
    batches = batches_for(graph, 2, [])
    with torch.no_grad():
        exact = outputs_of(network, graph, batches[0])
    plan = {layer: INT8 for layer, module in network.named_modules() if isinstance(module, KINDS)}
    quantize(network, plan, lambda: (tuple(batch[key] for key in graph.inputs) for batch in batches), entropy=False)
    check_exportable(network)
    path = tmp_path / "m.onnx"
    # which compares what the graph gives with the rounded network
    export_onnx(network, path, graph, ExportSettings(17, -1, quantized=True), card=ModelCard(task=name), samples=[])
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") > 5
    rounded = outputs_of(network, graph, batches[0])
    for output, wanted in exact.items():
        assert 0 < (rounded[output] - wanted).norm() < 0.2 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classify", "mal", "mlrecog"])
def test_scales_that_are_wrong_are_found(name, tmp_path, monkeypatch):
    make, graph = small_graphs.GRAPHS[name]
    torch.manual_seed(0)
    network, batches = make().eval(), batches_for(graph, 2, [])
    plan = {layer: INT8 for layer, module in network.named_modules() if isinstance(module, KINDS)}
    quantize(network, plan, lambda: (tuple(batch[key] for key in graph.inputs) for batch in batches), entropy=False)
    write = exporting._write

    def wrong(network, *others):
        for module in network.modules():
            if getattr(module, "input_quantizer", None) is not None and module.input_quantizer.is_enabled:
                module.input_quantizer.amax = module.input_quantizer.amax / 8
        write(network, *others)

    monkeypatch.setattr(exporting, "_write", wrong)
    settings = ExportSettings(17, -1, quantized=True)
    with pytest.raises(CheckpointError, match="differs from torch"):
        export_onnx(network, tmp_path / "m.onnx", graph, settings, card=ModelCard(task=name), samples=[])
