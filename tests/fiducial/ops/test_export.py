"""The op in ONNX graphs: three formulations, run where a runtime exists for them."""

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fiducial.backbones.deformable import MSDeformAttn
from fiducial.ops import export, export_as, ms_deform_attn

LEVELS = ((6, 4), (3, 2))
FORMULATIONS = {"gather": export.gather, "grid_sample": export.grid_sample, "plugin": export.plugin}


@pytest.fixture(autouse=True)
def _torch_kernel(monkeypatch):
    monkeypatch.setenv("FIDUCIAL_MSDA_KERNEL", "torch")


class Layer(torch.nn.Module):
    """The deformable layer as a backbone uses it: level sizes are constants, the batch is not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = MSDeformAttn(16, num_levels=2, num_heads=2, num_points=3)
        torch.nn.init.normal_(self.attention.sampling_offsets.weight)

    def forward(self, query, features):
        shapes = torch.tensor(LEVELS)
        sizes = shapes.prod(1)
        reference = torch.linspace(-0.1, 1.1, query.shape[1]).view(1, -1, 1, 1).expand(query.shape[0], -1, 1, 2)
        return self.attention(query, reference, features, shapes, sizes.cumsum(0) - sizes)


def draw(batch):
    gen = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 5, 16, generator=gen), torch.randn(batch, 30, 16, generator=gen)


def exported(formulation, opset=17):
    """The layer as an ONNX model, through the TorchScript-based exporter, with a free batch size."""
    file = io.BytesIO()
    with export_as(formulation), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Layer().eval(),
            draw(2),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["query", "features"],
            output_names=["out"],
            dynamic_axes={name: {0: "batch"} for name in ("query", "features", "out")},
        )
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("formulation", ["gather", "grid_sample"])
class TestRunnableGraphs:
    def test_onnxruntime_computes_the_same_for_any_batch(self, formulation):
        model = exported(formulation, opset=16)
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        layer = Layer().eval()
        for batch in (1, 3):
            query, features = draw(batch)
            (out,) = session.run(None, {"query": query.numpy(), "features": features.numpy()})
            np.testing.assert_allclose(out, layer(query, features).detach().numpy(), rtol=1e-4, atol=1e-5)

    def test_only_the_formulation_asked_for(self, formulation):
        operators = {node.op_type for node in exported(formulation).graph.node}
        assert ("GridSample" in operators) == (formulation == "grid_sample")
        assert {node.domain for node in exported(formulation).graph.node} <= {"", "ai.onnx"}


class TestPluginNode:
    def test_one_node_of_five_inputs_and_no_attributes(self):
        model = exported("plugin")
        (node,) = [node for node in model.graph.node if node.domain == "nvidia"]
        assert (node.op_type, len(node.input), len(node.output), len(node.attribute)) == (
            "MultiscaleDeformableAttnPlugin_TRT", 5, 1, 0
        )  # fmt: skip
        assert "nvidia" in {opset.domain for opset in model.opset_import}

    def test_index_inputs_are_int32_constants(self):
        model = exported("plugin")
        (node,) = [node for node in model.graph.node if node.domain == "nvidia"]
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        constants |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
        shapes, starts = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        assert (shapes.dtype, starts.dtype) == (np.int32, np.int32)
        assert (shapes.tolist(), starts.tolist()) == ([[6, 4], [3, 2]], [0, 24])


@pytest.mark.parametrize("formulation", FORMULATIONS)
class TestFormulations:
    def inputs(self):
        gen = torch.Generator().manual_seed(1)
        shapes = torch.tensor(LEVELS)
        loc = torch.rand(2, 7, 3, 2, 4, 2, generator=gen, dtype=torch.float64) * 1.6 - 0.3
        attn = torch.rand(2, 7, 3, 2, 4, generator=gen, dtype=torch.float64)
        return torch.randn(2, 30, 3, 5, generator=gen, dtype=torch.float64), shapes, torch.tensor([0, 24]), loc, attn

    def test_equals_the_op(self, formulation):
        torch.testing.assert_close(FORMULATIONS[formulation](*self.inputs()), ms_deform_attn(*self.inputs()))

    def test_half_precision_values_on_a_wide_level(self, formulation):
        value = (torch.arange(1000) % 2).half().view(1, 1000, 1, 1)
        columns = torch.tensor([1.25, 333.75, 998.25])  # rounded to half precision they would be others
        loc = torch.stack([(columns + 0.5) / 1000, torch.full((3,), 0.5)], -1).view(1, 3, 1, 1, 1, 2)
        inputs = (value, torch.tensor([[1, 1000]]), torch.tensor([0]), loc, torch.ones(1, 3, 1, 1, 1))
        out = FORMULATIONS[formulation](*inputs)
        assert out.dtype == torch.float16
        assert out.flatten().tolist() == pytest.approx([0.75, 0.25, 0.25], abs=1e-3)

    def test_stands_in_for_the_op_only_within_the_block(self, formulation):
        with export_as(formulation):
            assert export.active() is FORMULATIONS[formulation]
            torch.testing.assert_close(ms_deform_attn(*self.inputs()), FORMULATIONS[formulation](*self.inputs()))
        assert export.active() is None
