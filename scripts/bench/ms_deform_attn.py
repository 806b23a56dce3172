"""Time and memory of every deformable attention kernel that runs here, beside plain torch, in one run.

    python scripts/bench/ms_deform_attn.py [--device cuda] [--dtype float16] [--threads 2] [--only 896]

Shapes are those of the ViT-L adapter (16 heads of 32 channels, 4 points) at three image sizes, and of Deformable-DETR.
Points lie a few pixels around each query's own place, as in a trained network. Times are milliseconds, the best of
--repeats turns (other work on the machine only adds); "x torch" is torch's time over the kernel's. Memory is what a
call takes beyond its inputs, at its peak. On a GPU two columns compare the forward's bytes per second with those of a
plain copy: "once" counts every input and output once, the least that must move; "all" every pixel that a point reads.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # runs from a checkout, installed or not

from fiducial.ops import KernelError, kernel_for, ms_deform_attn

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One call: queries on a few grids, values on a few levels, both (height, width) lists."""

    name: str
    queries: tuple[tuple[int, int], ...]
    levels: tuple[tuple[int, int], ...]
    heads: int = 16
    channels: int = 32
    points: int = 4
    batch: int = 1

    def inputs(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        """The op's inputs, in order; locations and weights in float32 at least."""
        gen = torch.Generator().manual_seed(0)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        shapes = torch.tensor(self.levels)
        sizes = shapes.prod(1)
        place_Q2 = torch.cat([_centres(height, width) for height, width in self.queries])
        per_point = (self.batch, len(place_Q2), self.heads, len(self.levels), self.points)
        offset = torch.randn(*per_point, 2, generator=gen) * 2 / shapes.flip(1).unsqueeze(1)
        tensors = (
            torch.randn(self.batch, int(sizes.sum()), self.heads, self.channels, generator=gen).to(dtype),
            shapes,
            sizes.cumsum(0) - sizes,
            (place_Q2.view(1, -1, 1, 1, 1, 2) + offset).to(exact),
            torch.rand(*per_point[:3], len(self.levels) * self.points, generator=gen)
            .softmax(-1)
            .view(per_point)
            .to(exact),
        )
        return [tensor.to(device) for tensor in tensors]


def _centres(height: int, width: int) -> Tensor:
    """(x, y) in 0..1 of every pixel."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


def cases() -> Iterator[Case]:
    """Injector (ViT tokens look at three maps) and extractor (three maps look at ViT tokens), and Deformable-DETR."""
    for size in (224, 512, 896):
        maps = tuple((size // stride, size // stride) for stride in (8, 16, 32))
        tokens = ((size // 16, size // 16),)
        yield Case(f"injector {size}", tokens, maps)
        yield Case(f"extractor {size}", maps, tokens)
    maps = ((100, 167), (50, 84), (25, 42), (13, 21))
    yield Case("DETR encoder", maps, maps, heads=8)
    yield Case("DETR decoder", ((15, 20),), maps, heads=8)


class Meter:
    """Time and peak memory of calls on one device."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def milliseconds(self, calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
        """The best time of each call, the calls taking turns; the first turn does not count."""
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(repeats + 1):
            for call, spent in zip(calls, times, strict=True):
                spent.append(self._once(call))
        return [1000 * min(spent[1:]) for spent in times]

    def _once(self, call: Callable[[], object]) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(200_000)  # so that the launches are queued and their cost does not count
        start_event.record()
        call()
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event) / 1000

    def megabytes(self, call: Callable[[], object]) -> float:
        """What the call takes beyond what was there before, at its peak (CPU: resident memory, Linux only)."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        ctypes.CDLL(None).malloc_trim(0)  # what is free must not hide what is taken
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before_kb = _resident("VmRSS")
        call()
        return (_resident("VmHWM") - before_kb) / 1e3


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def copy_bandwidth(meter: Meter) -> float:
    """Bytes per second, read and written, of a copy much larger than the caches."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    (milliseconds,) = meter.milliseconds([lambda: target.copy_(source)], 10)
    return 2 * source.numel() / (milliseconds / 1000)


def bytes_moved(inputs: Sequence[Tensor], output: Tensor) -> tuple[int, int]:
    """(every tensor once, every pixel that is read)."""
    value, _, _, locations, weights = inputs
    others = sum(t.numel() * t.element_size() for t in (locations, weights, output))
    row = value.shape[-1] * value.element_size()
    return others + value.numel() * value.element_size(), others + weights.numel() * 4 * row


def usable(device: str) -> list[str]:
    """The kernels that run here, torch first."""
    names = []
    for name in ("torch", "cuda", "triton") if device == "cuda" else ("torch", "cpp"):
        try:
            kernel_for(device, name)
            names.append(name)
        except KernelError as reason:
            print(f"without {name}: {reason}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each case and kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, for all kernels alike")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    meter, names = Meter(options.device), usable(options.device)
    peak = copy_bandwidth(meter) if meter.on_gpu else 0.0
    where = torch.cuda.get_device_name() if meter.on_gpu else f"CPU, {options.threads} threads"
    print(f"{where}, {options.dtype}" + (f", copy {peak / 1e9:.0f} GB/s" if peak else ""))
    print(
        f"{'case':15} {'kernel':7} {'forward':>9} {'x torch':>8} {'MB':>7} {'both':>9} {'x torch':>8} {'MB':>7}", end=""
    )
    print(f" {'once':>6} {'all':>6}" if peak else "")
    for case in cases():
        if options.only in case.name:
            compare(case, case.inputs(options.device, DTYPES[options.dtype]), names, meter, options.repeats, peak)
    return 0


def compare(
    case: Case, inputs: Sequence[Tensor], names: Sequence[str], meter: Meter, repeats: int, peak: float
) -> None:
    """Print the lines of one case."""
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    differentiable = [t for t in leaves if t.requires_grad]
    grad = torch.ones_like(ms_deform_attn(*leaves, kernel="torch"))

    def forward(name: str) -> Tensor:
        with torch.no_grad():
            return ms_deform_attn(*leaves, kernel=name)

    def both(name: str) -> object:
        return torch.autograd.grad(ms_deform_attn(*leaves, kernel=name), differentiable, grad)

    forwards, boths = ([lambda f=f, n=n: f(n) for n in names] for f in (forward, both))
    forward_ms, both_ms = meter.milliseconds(forwards, repeats), meter.milliseconds(boths, repeats)
    for index, name in enumerate(names):
        forward_mb, both_mb = meter.megabytes(forwards[index]), meter.megabytes(boths[index])
        line = f"{case.name:15} {name:7}"
        for times, megabytes in ((forward_ms, forward_mb), (both_ms, both_mb)):
            line += f" {times[index]:9.3f} {times[0] / times[index]:8.2f} {megabytes:7.1f}"
        if peak:
            moved = bytes_moved(inputs, grad)
            line += "".join(f" {count / (forward_ms[index] / 1000) / peak:6.0%}" for count in moved)
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
