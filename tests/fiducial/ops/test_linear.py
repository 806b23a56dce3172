"""Linear layers computed as convolutions: the same results, and plain ones wherever a graph is written down."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fiducial.ops import linear
from fiducial.ops.fastest import VARIABLE, Fastest
from fiducial.ops.linear import Linear, use_fast_linears


@pytest.fixture(autouse=True)
def convolution_wins(monkeypatch):
    """Whatever can be convolved is."""
    monkeypatch.setattr(linear.LINEARS, "_answer", lambda *question: "convolution")
    monkeypatch.setattr(linear.LINEARS, "_used", {})


def pair(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Linear]:
    torch.manual_seed(0)
    plain, fast = nn.Linear(24, 10, bias=bias, dtype=dtype), Linear(24, 10, bias=bias, dtype=dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@pytest.fixture
def convolutions(monkeypatch) -> list[tuple[int, ...]]:
    """The shape of every input that a convolution gets."""
    seen: list[tuple[int, ...]] = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: (seen.append(tuple(x.shape)), convolve(x, *rest))[1])
    return seen


class TestLinear:
    @pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 7, 24), (2, 3, 5, 24)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_results_and_gradients_are_those_of_a_plain_layer(self, shape, bias, convolutions):
        results = []
        for layer in pair(bias=bias):
            x = torch.linspace(-1, 1, 24).expand(shape).clone().requires_grad_()
            y = layer(x)
            y.square().sum().backward()
            results.append([y, x.grad, *(p.grad for p in layer.parameters())])
        assert len(convolutions) == 1
        for ours, torchs in zip(*results, strict=True):
            assert ours.shape == torchs.shape
            torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)

    def test_a_view_with_strides_of_its_own(self, convolutions):
        plain, fast = pair()
        x = torch.randn(2, 24, 3, 5).permute(0, 2, 3, 1)
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
        assert convolutions == [(1, 24, 1, 30)]

    def test_timed_within_a_checkpointed_block(self, monkeypatch, tmp_path):
        plain, fast = pair()
        fresh = Fastest("linear layers", ("plain", "convolution"), folder=tmp_path)
        monkeypatch.setattr(linear, "LINEARS", fresh)
        monkeypatch.delenv(VARIABLE, raising=False)
        x = torch.randn(2, 7, 24, requires_grad=True)
        checkpoint(lambda x: fast(x).square(), x, use_reentrant=False).sum().backward()
        (record,) = (tmp_path / "records").iterdir()
        assert '"ms"' in record.read_text()
        gradient = x.grad.clone()
        x.grad = None
        plain(x).square().sum().backward()
        torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)

    def test_beside_what_is_transformed(self, monkeypatch, tmp_path):
        plain, fast = pair()
        monkeypatch.setattr(linear, "LINEARS", Fastest("linear layers", ("plain", "convolution"), folder=tmp_path))
        monkeypatch.delenv(VARIABLE, raising=False)
        x = torch.randn(7, 24)
        found = torch.func.grad(lambda scale: (scale * fast(x)).sum())(torch.tensor(2.0))
        torch.testing.assert_close(found, plain(x).sum())

    def test_no_rows(self):
        assert pair()[1](torch.empty(0, 3, 24)).shape == (0, 3, 10)

    def test_wrong_inputs_get_torchs_message(self):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            pair()[1](torch.empty(3, 23))

    def test_transforms_of_torch_func(self):
        plain, fast = pair()
        x = torch.randn(5, 7, 24)

        def gradients(layer):
            parameters = dict(layer.named_parameters())

            def loss(parameters, x):
                return torch.func.functional_call(layer, parameters, (x,)).square().sum()

            return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)

        torch.testing.assert_close(gradients(fast), gradients(plain), rtol=1e-5, atol=1e-5)
        pushed = [torch.func.jvp(layer, (x,), (x,))[1] for layer in (fast, plain)]
        torch.testing.assert_close(*pushed, rtol=1e-5, atol=1e-5)

    def test_copies_and_pickles(self):
        fast = pair()[1]
        x = torch.randn(3, 24)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(x), fast(x))

    def test_other_types_are_multiplied(self, convolutions):
        plain, fast = pair(dtype=torch.float64)
        x = torch.randn(3, 24, dtype=torch.float64)
        assert torch.equal(fast(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert pair()[1](x.float()).dtype == torch.bfloat16
        assert not convolutions

    @pytest.mark.parametrize("strict", [True, False])
    def test_an_exported_graph_holds_a_linear_layer(self, strict):
        program = torch.export.export(pair()[1].eval(), (torch.randn(3, 24),), strict=strict)
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert called == ["aten.linear.default"]

    def test_so_do_a_traced_and_a_compiled_one(self, convolutions):
        plain, fast = pair()
        x = torch.randn(3, 24)
        traced = torch.jit.trace(fast, (x,), check_trace=False)
        assert "aten::linear" in str(traced.inlined_graph)
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), plain(x))
        assert not convolutions


class TestUseFastLinears:
    def test_all_else_stays(self):
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2, bias=False)))
        called = []
        network[0].register_forward_hook(lambda *_: called.append("hook"))
        network[2].eval()
        before = dict(network.named_parameters())
        use_fast_linears(network)
        after = dict(network.named_parameters())
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
        assert [type(layer) for layer in (network[0], network[2][0])] == [Linear, Linear]
        assert network[0].training
        assert not network[2][0].training
        network(torch.randn(1, 3))
        assert called == ["hook"]

    def test_other_kinds_of_linear_layers_are_left_alone(self):
        class Scaled(nn.Linear):
            pass

        network = nn.Sequential(Scaled(3, 4))
        use_fast_linears(network)
        assert type(network[0]) is Scaled
