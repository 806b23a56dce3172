"""Every kernel that can run here against plain torch, the inputs that break kernels, and the choice among them."""

import importlib
import logging
import os
import subprocess
import sys

import pytest
import torch

from fiducial.ops import KernelError, build, kernels, ms_deform_attn, reference
from fiducial.ops.kernel import UnavailableError
from fiducial.ops.kernels import kernel_for

TOLERANCE = {  # of float32 sums in another order; of one rounding to half precision
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton runs on the CPU, and only there, in the whole process
ON_CPU = ("triton-cpu",) if INTERPRETED else ("torch-cpu", pytest.param("cpp-cpu", marks=pytest.mark.compiler))
ON_GPU = () if INTERPRETED else ("torch-cuda", "cuda-cuda", "triton-cuda")


@pytest.fixture(params=[*ON_CPU, *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPU)])
def run_on(request):
    """(kernel name, device)."""
    name, device = request.param.split("-")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    kernels._choose.cache_clear()
    yield name, device
    kernels._choose.cache_clear()


def make(
    device="cpu", *, dtype=torch.float32, batch=2, levels=((5, 7), (3, 2)), queries=4, heads=2, channels=4, points=3
):
    """Inputs of the op in order; locations from -0.3 to 1.3, in float32 where the values are half precision."""
    gen = torch.Generator().manual_seed(channels)
    shapes = torch.tensor(levels, dtype=torch.int64).view(-1, 2)
    sizes = shapes.prod(1)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    per_point = (batch, queries, heads, len(levels), points)
    value = torch.randn(batch, int(sizes.sum()), heads, channels, generator=gen, dtype=exact).to(dtype)
    loc = torch.rand(*per_point, 2, generator=gen, dtype=exact) * 1.6 - 0.3
    attn = torch.rand(per_point, generator=gen, dtype=exact)
    return [tensor.to(device) for tensor in (value, shapes, sizes.cumsum(0) - sizes, loc, attn)]


def with_gradients(kernel, value, shapes, starts, loc, attn):
    """The output, and the gradients of a fixed weighted sum of it."""
    leaves = [tensor.detach().requires_grad_() for tensor in (value, loc, attn)]
    out = ms_deform_attn(leaves[0], shapes, starts, leaves[1], leaves[2], kernel=kernel)
    weight = torch.linspace(-1, 1, max(out.numel(), 1), device=out.device)[: out.numel()].view(out.shape)
    return [out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), leaves)]


def assert_equals_torch(run_on, inputs):
    found, wanted = with_gradients(run_on[0], *inputs), with_gradients("torch", *inputs)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, **TOLERANCE[inputs[0].dtype])
    return found


class TestEveryKernel:
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("channels", [1, 5, 16, 24, 32])
    def test_equals_torch(self, run_on, dtype, channels):
        assert_equals_torch(run_on, make(run_on[1], dtype=dtype, channels=channels))

    @pytest.mark.parametrize("channels", [64, 128, 250, 256])
    def test_wide_heads(self, run_on, channels):
        assert_equals_torch(run_on, make(run_on[1], batch=1, channels=channels, queries=2, heads=1))

    def test_infinite_and_missing_locations_contribute_nothing(self, run_on):
        inputs = make(run_on[1])
        bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e9], device=run_on[1])
        inputs[3][:, :3] = bad.repeat(12).view(1, 3, 2, 2, 3, 2)
        out, d_value, d_loc, d_attn = assert_equals_torch(run_on, inputs)
        assert out[:, :3].abs().max() == 0
        assert d_loc[:, :3].abs().max() == 0
        assert d_attn[:, :3].abs().max() == 0
        assert torch.isfinite(d_value).all()

    def test_levels_without_pixels(self, run_on):
        assert_equals_torch(run_on, make(run_on[1], levels=((0, 4), (3, 2), (2, 0), (0, 0))))

    @pytest.mark.parametrize(
        "empty", [{"queries": 0}, {"batch": 0}, {"levels": ()}, {"points": 0}, {"levels": ((0, 3),)}]
    )
    def test_nothing_to_do(self, run_on, empty):
        inputs = make(run_on[1], **empty)
        out, *gradients = with_gradients(run_on[0], *inputs)
        assert out.shape == (inputs[0].shape[0], inputs[3].shape[1], 8)
        assert all(tensor.abs().sum() == 0 for tensor in (out, *gradients))

    def test_non_contiguous_and_unaligned(self, run_on):
        value, shapes, starts, loc, attn = make(run_on[1])
        spread = value.transpose(1, 2).contiguous().transpose(1, 2)
        shifted = torch.cat([loc.new_zeros(1), loc.flatten()])[1:].view(loc.shape)
        assert not spread.is_contiguous()
        assert shifted.data_ptr() % 8
        assert_equals_torch(run_on, [spread, shapes.int(), starts.int(), shifted, attn.flip(1)])

    def test_half_precision_locations(self, run_on):
        inputs = make(run_on[1], dtype=torch.float16)
        assert_equals_torch(run_on, [*inputs[:3], inputs[3].half(), inputs[4].half()])

    def test_large_batch(self, run_on):
        assert_equals_torch(run_on, make(run_on[1], batch=130, queries=1, channels=2, levels=((2, 2),), points=1))

    def test_deterministic_when_asked(self, run_on):
        inputs = make(run_on[1], queries=40, levels=((2, 2),))  # many points on few pixels
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            first, second = (with_gradients(run_on[0], *inputs) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(before)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        for got, want in zip(first, with_gradients("torch", *inputs), strict=True):
            torch.testing.assert_close(got, want, **TOLERANCE[torch.float32])

    def test_opcheck(self, run_on):
        inputs = [t.requires_grad_() if t.is_floating_point() else t for t in make(run_on[1], queries=2)]
        utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.fiducial.ms_deform_attn.default, (*inputs, run_on[0]), test_utils=utilities)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
class TestTritonWithoutGpu:
    @pytest.mark.slow
    def test_interpreted(self):
        """The tests of every kernel, in a process where Triton is interpreted."""
        command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "TestEveryKernel and triton-cpu"]
        done = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert "skipped" not in done.stdout

    @pytest.mark.parametrize("name", ["_forward_kernel", "_backward_kernel"])
    def test_compiles_for_gpus(self, name, monkeypatch, tmp_path):  # which needs no GPU
        compiler = pytest.importorskip("triton.compiler")
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        kernel = getattr(importlib.import_module("fiducial.ops.triton_kernel"), name)
        constants = {"D": 32, "L": 3, "P": 4, "BLOCK_N": 32, "BLOCK_D": 32, "SCATTER": True}
        constants = {argument: constants[argument] for argument in kernel.arg_names if argument in constants}
        half, index, sizes = {"value", "grad", "out"}, {"shapes", "starts"}, {"outputs", "S", "Q", "M"}

        def dtype(argument):
            if argument in constants:
                return "constexpr"
            return (
                "i32"
                if argument in sizes
                else "*fp16"
                if argument in half
                else "*i64"
                if argument in index
                else "*fp32"
            )

        source = compiler.ASTSource(kernel, {argument: dtype(argument) for argument in kernel.arg_names}, constants)
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 80, 32)
        assert compiler.compile(source, target=target, options={"enable_fp_fusion": True}).asm["cubin"]


@pytest.mark.gpu
class TestOnGpu:
    """What only a GPU shows."""

    @pytest.fixture(autouse=True)
    def _gpu(self):
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")

    def test_levels_that_do_not_fit_are_empty(self):
        value, shapes, starts, loc, attn = make("cuda")
        shapes = shapes + torch.tensor([[1000, 0], [0, 0]], device="cuda")
        out = [ms_deform_attn(value, shapes, starts, loc, attn, kernel=name) for name in ("torch", "cuda", "triton")]
        torch.testing.assert_close(out[1], out[0])
        torch.testing.assert_close(out[2], out[0])

    def test_does_not_wait_for_the_gpu(self):
        inputs = make("cuda", channels=32)
        with_gradients("cuda", *inputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with_gradients("cuda", *inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_runs_on_the_current_stream(self):
        inputs = make("cuda", channels=32)
        expected = ms_deform_attn(*inputs, kernel="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**8)
            value = inputs[0].clone()
            out = ms_deform_attn(value, *inputs[1:], kernel="cuda")
        stream.synchronize()
        torch.testing.assert_close(out, expected)

    def test_more_than_2_to_31_numbers(self):
        shapes, starts = torch.tensor([[4096, 4100]], device="cuda"), torch.tensor([0], device="cuda")
        value = torch.zeros(1, 4096 * 4100, 4, 32, dtype=torch.float16, device="cuda")
        value[:, -1] = 3
        loc = torch.ones(1, 2, 4, 1, 1, 2, device="cuda") - 0.5 / shapes.flip(1)
        out = ms_deform_attn(value, shapes, starts, loc, torch.ones(1, 2, 4, 1, 1, device="cuda"), kernel="cuda")
        torch.testing.assert_close(out, torch.full_like(out, 3), rtol=0.01, atol=0.01)


class TestChoice:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch):
        monkeypatch.delenv(kernels.ENVIRONMENT, raising=False)
        kernels._choose.cache_clear()
        yield
        kernels._choose.cache_clear()

    @staticmethod
    def _unavailable(device):
        raise UnavailableError("no C++ compiler (g++): install g++")

    def test_falls_back_to_torch_with_one_line_that_says_why(self, monkeypatch, caplog):
        monkeypatch.setitem(kernels._LOADERS, "cpp", self._unavailable)
        with caplog.at_level(logging.INFO, logger="fiducial"):
            assert kernel_for("cpu").name == "torch"
            kernel_for("cpu")
        assert caplog.messages == [
            "deformable attention on cpu: kernel torch (cpp: no C++ compiler (g++): install g++)"
        ]

    @pytest.mark.compiler
    def test_prefers_the_compiled_kernel(self):
        assert kernel_for("cpu").name == "cpp"

    def test_prefers_triton_where_nothing_can_be_compiled(self, monkeypatch):
        monkeypatch.setitem(kernels._LOADERS, "cuda", self._unavailable)
        monkeypatch.setitem(
            kernels._LOADERS, "triton", lambda device: kernels.Kernel("triton", reference.forward, reference.backward)
        )
        assert kernel_for("cuda").name == "triton"

    def test_environment_forces(self, monkeypatch):
        monkeypatch.setenv(kernels.ENVIRONMENT, "torch")
        assert kernel_for("cpu").name == "torch"

    def test_argument_wins_over_environment(self, monkeypatch):
        monkeypatch.setenv(kernels.ENVIRONMENT, "cuda")
        assert kernel_for("cpu", "torch").name == "torch"

    def test_unknown_name(self, monkeypatch):
        monkeypatch.setenv(kernels.ENVIRONMENT, "gpu")
        with pytest.raises(
            KernelError, match="FIDUCIAL_MSDA_KERNEL · unknown kernel 'gpu' · one of torch, cpp, cuda, tri"
        ):
            kernel_for("cpu")

    @pytest.mark.parametrize(("device", "name"), [("cpu", "cuda"), ("cuda", "cpp")])
    def test_kernel_of_another_device(self, device, name):
        with pytest.raises(KernelError, match=f"kernel '{name}' for tensors on {device}"):
            kernel_for(device, name)

    def test_forced_and_unavailable(self, monkeypatch):
        monkeypatch.setattr(build, "library", self._unavailable)
        with pytest.raises(KernelError, match="kernel 'cpp' is not available: no C\\+\\+ compiler"):
            kernel_for("cpu", "cpp")
