"""The CUDA kernels without a GPU: their source is compiled for the CPU and run thread by thread.

This proves their arithmetic, not their speed; ``test_kernels.py`` runs the real ones where there is a GPU.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from fiducial.ops import build, compiled, reference
from fiducial.resources import resource_dir

pytestmark = [pytest.mark.slow, pytest.mark.compiler]
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}}  # of sums in another order; torch's own for the others


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The ops of the CUDA source, for CPU tensors, as ``torch.ops.emulated``."""
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    text = (resource_dir("csrc") / "ms_deform_attn_cuda.cu").read_text()
    changes = (
        (r"#include <(cuda_\w+\.h|torch/csrc/stable/accelerator\.h)>\n", ""),
        (r"cudaStream_t current_stream\(.*?\n}\n", ""),
        (r".*(DeviceGuard guard|= current_stream).*\n", ""),
        (r"STD_CUDA_KERNEL_LAUNCH_CHECK\(\);", ""),
        (r"(\w+_kernel<.*?>)<<<blocks, THREADS, 0, stream>>>(\(.*?\));", r"launch(blocks, THREADS, [&] { \1\2; });"),
        (r"STABLE_TORCH_LIBRARY_IMPL\(fiducial, CUDA", "STABLE_TORCH_LIBRARY_IMPL(emulated, CPU"),
    )
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, flags=re.DOTALL if ".*?" in pattern else 0)
        assert count, f"the source has changed: {pattern}"
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(f'#include "{Path(__file__).parent / "cuda_on_cpu.h"}"\n{text}')
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", str(source), *build.torch_flags()]
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    ops = torch.library.Library("emulated", "DEF")
    for schema in compiled.SCHEMAS:
        ops.define(schema)
    torch.ops.load_library(library)
    yield torch.ops.emulated
    ops._destroy()


def inputs(dtype, *, batch=2, levels=((5, 7), (1, 1), (3, 2)), queries=5, heads=2, channels=4, points=3):
    gen = torch.Generator().manual_seed(channels)
    shapes = torch.tensor(levels)
    sizes = shapes.prod(1)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    per_point = (batch, queries, heads, len(levels), points)
    value = torch.randn(batch, int(sizes.sum()), heads, channels, generator=gen, dtype=exact).to(dtype)
    loc = torch.rand(*per_point, 2, generator=gen, dtype=exact) * 1.6 - 0.3
    loc.view(-1)[:6] = torch.tensor([torch.nan, 0.5, torch.inf, 0.5, -1e30, 1e30])
    weights = torch.rand(per_point, generator=gen, dtype=exact)
    grad = torch.randn(batch, queries, heads * channels, generator=gen, dtype=exact).to(dtype)
    return grad, value, shapes, sizes.cumsum(0) - sizes, loc, weights


def results(ops, grad, value, *rest, scatter=True):
    """The output and the three gradients."""
    out = torch.empty_like(grad)
    ops.ms_deform_attn_into(value, *rest, out)
    gradients = [torch.zeros_like(tensor, dtype=rest[2].dtype) for tensor in (value, rest[2], rest[3])]
    ops.ms_deform_attn_backward_into(grad, value, *rest, gradients[0] if scatter else None, *gradients[1:])
    return [out, *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 24, 32, 40, 64, 128, 256])
def test_equals_torch(emulated, dtype, channels):
    given = inputs(dtype, channels=channels)
    expected = [reference.forward(*given[1:]), *reference.backward(*given, True)]
    for found, wanted in zip(results(emulated, *given), expected, strict=True):
        torch.testing.assert_close(found, wanted, **TOLERANCE.get(found.dtype, {}))


def test_value_gradient_may_be_left_out(emulated):
    given = inputs(torch.float32, channels=32)
    for found, wanted in zip(
        results(emulated, *given, scatter=False)[2:], reference.backward(*given, True)[1:], strict=True
    ):
        torch.testing.assert_close(found, wanted, **TOLERANCE.get(found.dtype, {}))


def test_levels_that_do_not_fit_are_empty(emulated):  # on a GPU nobody looks before the kernel does
    grad, value, shapes, starts, loc, weights = inputs(torch.float32, channels=16)
    shapes, starts = shapes.clone(), starts.clone()
    shapes[0, 0], starts[2] = 1000, -5
    out, d_value, d_loc, d_weights = results(emulated, grad, value, shapes, starts, loc, weights)
    torch.testing.assert_close(out, reference.forward(value, shapes, starts, loc, weights))
    assert d_value[:, :35].abs().sum() == 0
    assert d_loc[:, :, :, [0, 2]].abs().sum() == 0
    assert d_weights[:, :, :, [0, 2]].abs().sum() == 0
