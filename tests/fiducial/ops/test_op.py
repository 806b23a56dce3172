"""The op itself: hand-computed numbers, stored originals, gradients, compilation, and what malformed inputs say."""

import importlib
import sysconfig
from pathlib import Path

import pytest
import torch

from fiducial.ops import export_as, ms_deform_attn, reference

REPOSITORY = Path(__file__).parents[3]
STORED = REPOSITORY / "tests" / "stored"
HEADERS = pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").is_file(), reason="torch.compile needs Python's headers"
)


@pytest.fixture(autouse=True)
def _torch_kernel(monkeypatch):
    monkeypatch.setenv("FIDUCIAL_MSDA_KERNEL", "torch")


def make(batch=2, levels=((5, 7), (3, 2)), queries=6, heads=2, channels=4, points=3, dtype=torch.float64, seed=0):
    """Inputs by name; locations from -0.3 to 1.3, so that some lie outside."""
    gen = torch.Generator().manual_seed(seed)
    shapes = torch.tensor(levels)
    sizes = shapes.prod(1)
    per_point = (batch, queries, heads, len(levels), points)
    return {
        "value": torch.randn(batch, int(sizes.sum()), heads, channels, generator=gen, dtype=dtype),
        "shapes": shapes,
        "starts": sizes.cumsum(0) - sizes,
        "loc": torch.rand(*per_point, 2, generator=gen, dtype=dtype) * 1.6 - 0.3,
        "attn": torch.rand(*per_point, generator=gen, dtype=dtype),
    }


def one_pixel_inputs(x, y):
    """A level of 2 x 2 pixels (1 2 / 3 4), one point of weight 1 at (x, y)."""
    return {
        "value": torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1),
        "shapes": torch.tensor([[2, 2]]),
        "starts": torch.tensor([0]),
        "loc": torch.tensor([x, y]).view(1, 1, 1, 1, 1, 2),
        "attn": torch.ones(1, 1, 1, 1, 1),
    }


class TestHandComputed:
    @pytest.mark.parametrize(
        ("x", "y", "expected"),
        [
            (0.25, 0.25, 1.0),  # the centre of the first pixel
            (0.5, 0.5, 2.5),  # between all four
            (0.5, 0.25, 1.5),
            (0.0, 0.0, 0.25),  # the corner of the image: three quarters are padding
            (1.0, 0.75, 2.0),  # the right edge: half of pixel 4
            (-0.25, 0.25, 0.0),  # exactly one pixel outside
            (1.2, 0.25, 0.2),  # 0.9 pixels outside pixel 2
        ],
    )
    def test_samples(self, x, y, expected):
        assert ms_deform_attn(**as_arguments(one_pixel_inputs(x, y))).item() == pytest.approx(expected, abs=1e-6)

    def test_gradients(
        self,
    ):  # at pixel (0.5, 0.5): d/dx = size * mean of (2 - 1, 4 - 3), d/dy = size * mean of (3 - 1, 4 - 2)
        inputs = one_pixel_inputs(0.5, 0.5)
        leaves = [inputs[name].requires_grad_() for name in ("value", "loc", "attn")]
        d_value, d_loc, d_attn = torch.autograd.grad(ms_deform_attn(**as_arguments(inputs)).sum(), leaves)
        assert d_value.flatten().tolist() == [0.25] * 4
        assert d_loc.flatten().tolist() == [2.0, 4.0]
        assert d_attn.item() == 2.5


def as_arguments(inputs):
    return {
        "value": inputs["value"],
        "spatial_shapes": inputs["shapes"],
        "level_start_index": inputs["starts"],
        "sampling_locations": inputs["loc"],
        "attention_weights": inputs["attn"],
    }


def run(inputs, **options):
    return ms_deform_attn(**as_arguments(inputs), **options)


@pytest.mark.parametrize("kernel", ["torch", pytest.param("cpp", marks=pytest.mark.compiler)])
@pytest.mark.parametrize("case", sorted(STORED.glob("msda_*.json")), ids=lambda path: path.stem)
def test_stored_originals(case, kernel, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    importlib.import_module("parity_cases.deformable")
    monkeypatch.setenv("FIDUCIAL_MSDA_KERNEL", kernel)
    outcome = importlib.import_module("parity_cases").run_case(case)
    assert outcome.status == "pass", outcome.note


class TestRegistration:
    def test_opcheck(self):
        inputs = make()
        for name in ("value", "loc", "attn"):
            inputs[name].requires_grad_()
        torch.library.opcheck(torch.ops.fiducial.ms_deform_attn.default, tuple(inputs.values()))

    def test_opcheck_of_the_backward(self):
        inputs = make()
        grad = torch.rand(2, 6, 8, dtype=torch.float64)
        torch.library.opcheck(
            torch.ops.fiducial.ms_deform_attn_backward.default, (grad, *inputs.values(), True, "torch")
        )

    def test_gradcheck(self):
        inputs = make(queries=3)
        leaves = [inputs[name].requires_grad_() for name in ("value", "loc", "attn")]
        torch.autograd.gradcheck(
            lambda value, loc, attn: run({**inputs, "value": value, "loc": loc, "attn": attn}), leaves, fast_mode=False
        )

    @pytest.mark.parametrize(
        "backend",
        ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.compiler, HEADERS])],
    )
    def test_compiles_as_one_graph_forward_and_backward(self, backend):
        inputs = make(dtype=torch.float32)
        leaves = [inputs[name].requires_grad_() for name in ("value", "loc", "attn")]

        def loss(value, loc, attn):
            return run({**inputs, "value": value * 2, "loc": loc, "attn": attn.softmax(-1)}).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        for got, want in zip(
            torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
        ):
            torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("kernel", ["", "torch", pytest.param("cpp", marks=pytest.mark.compiler)])
    def test_forward_mode(self, kernel):  # linear in the values, so its derivative along them is itself
        inputs = make()
        out, tangent = torch.func.jvp(
            lambda value: run({**inputs, "value": value}, kernel=kernel), (inputs["value"],), (inputs["value"],)
        )
        torch.testing.assert_close(tangent, out)
        torch.testing.assert_close(out, run(inputs))

    def test_second_gradients(self):
        inputs = make(levels=((3, 2),), batch=1, queries=2, channels=2, points=2)
        leaves = [inputs[name].requires_grad_() for name in ("value", "loc", "attn")]

        def compute(value, loc, attn):
            return run({**inputs, "value": value, "loc": loc, "attn": attn})

        first = torch.autograd.grad(compute(*leaves).square().sum(), leaves, create_graph=True)
        with pytest.raises(NotImplementedError, match="can be differentiated once"):
            first[1].sum().backward()
        with export_as("gather"):
            torch.autograd.gradgradcheck(compute, leaves)

    def test_schema_has_no_mutation(self):
        assert not torch.ops.fiducial.ms_deform_attn.default._schema.is_mutable


class TestProperties:
    def test_a_batch_is_its_samples(self):
        inputs = make(batch=3)
        alone = [
            run({k: v if k in ("shapes", "starts") else v[i : i + 1] for k, v in inputs.items()}) for i in range(3)
        ]
        torch.testing.assert_close(run(inputs), torch.cat(alone))

    def test_linear_in_values_and_weights(self):
        inputs = make()
        doubled = run({**inputs, "value": 2 * inputs["value"], "attn": 3 * inputs["attn"]})
        torch.testing.assert_close(doubled, 6 * run(inputs))

    def test_huge_batch(self):  # TAO's op wants a multiple of 64 above 64
        inputs = make(batch=1031, queries=2, channels=1)
        assert run(inputs).shape == (1031, 2, 2)

    @pytest.mark.parametrize("precise", [True, False])
    def test_what_lies_outside_is_zero_whatever_the_pixels_hold(self, precise):
        inputs = make(batch=2)
        inputs["value"][0] = float("nan")
        inputs["loc"][1] = 7.0
        leaves = [inputs[name].requires_grad_() for name in ("value", "loc", "attn")]
        out = run(inputs, precise=precise)
        assert out[1].eq(0).all()
        assert all(grad[1].eq(0).all() for grad in torch.autograd.grad(out.sum(), leaves))

    def test_equals_grid_sample(self):
        inputs = make(levels=((4, 4),))
        image = inputs["value"].permute(0, 2, 3, 1).reshape(4, 4, 4, 4)
        grid = 2 * inputs["loc"][:, :, :, 0].transpose(1, 2).flatten(0, 1) - 1
        samples = torch.nn.functional.grid_sample(image, grid, align_corners=False).view(2, 2, 4, 6, 3)
        expected = torch.einsum("bmcqp,bqmlp->bqmc", samples, inputs["attn"]).flatten(2)
        torch.testing.assert_close(run(inputs), expected)

    def test_precise_is_the_torch_kernel(self, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_MSDA_KERNEL", "cuda")  # cannot serve a CPU: proves that precise wins
        inputs = make()
        torch.testing.assert_close(run(inputs, precise=True), reference.forward(*inputs.values()), rtol=0, atol=0)


class TestMalformed:
    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("value", lambda v: v.flatten(2), r"value must be \(B, S, M, D\), found \(2, 41, 8\)"),
            ("loc", lambda v: v[..., 0], r"sampling_locations must be \(B, Q, M, L, P, 2\)"),
            ("loc", lambda v: v[:1], r"sampling_locations must be .* = \(2, 6, 2, 2, 3, 2\), found \(1, "),
            ("attn", lambda v: v[:, :5], r"attention_weights must be .* = \(2, 6, 2, 2, 3\), found \(2, 5, "),
            ("shapes", lambda v: v[:1], r"spatial_shapes must be \(L, 2\) = \(2, 2\), found \(1, 2\)"),
            ("starts", lambda v: v[:1], r"level_start_index must be \(L,\) = \(2,\), found \(1,\)"),
            ("shapes", lambda v: v.float(), "spatial_shapes must be int32 or int64, found torch.float32"),
            ("value", lambda v: v.long(), "value must be float32, .* found torch.int64"),
            ("shapes", lambda v: v + 1, r"level 0 \(6 x 8 from pixel 0\) does not lie within 41 pixels"),
            ("starts", lambda v: v - 1, r"level 0 .* from pixel -1\) does not lie"),
            ("loc", lambda v: v.to("meta"), "one device, found cpu, cpu, cpu, meta, cpu"),
        ],
    )
    def test_is_refused_with_what_was_found(self, name, change, message):
        inputs = make()
        inputs[name] = change(inputs[name])
        with pytest.raises(RuntimeError, match=message):
            run(inputs)
