"""Time and peak memory of two ways of doing the same, in turns: what the benchmarks of this folder share."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Way:
    """One of the two: a name, and a call that does it once. What the call returns is held until memory was read."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Turn:
    """What one call took."""

    seconds: float
    megabytes: float


Meter = Callable[[Callable[[], object]], Turn]
"""Calls something once and says what it took: :func:`measure`, with a clock."""


@dataclass(frozen=True)
class Ratio:
    """How many times less time ``ours`` takes than the baseline; the median of the ratios of neighbouring turns."""

    value: float
    target: float | None

    @property
    def met(self) -> bool:
        """Whether the ratio is as good as it should be, or need not be."""
        return self.target is None or self.value >= self.target

    def __str__(self) -> str:
        wanted = "" if self.target is None else f"  (target {self.target:g}: {'met' if self.met else 'MISSED'})"
        return f"{self.value:.2f}x{wanted}"


def compare(baseline: Way, ours: Way, *, turns: int, target: float | None = None, meter: Meter) -> Ratio:
    """Run baseline, ours, baseline, ours, … ``turns`` times each; print medians and the ratio."""
    spent: dict[str, list[Turn]] = {baseline.name: [], ours.name: []}
    for _ in range(turns):
        for way in (baseline, ours):
            spent[way.name].append(meter(way.run))
    ratios = [b.seconds / o.seconds for b, o in zip(spent[baseline.name], spent[ours.name], strict=True)]
    ratio = Ratio(statistics.median(ratios), target)
    print_line(baseline.name, spent[baseline.name])
    print_line(ours.name, spent[ours.name], str(ratio))
    return ratio


def print_line(name: str, turns: Sequence[Turn], ratio: str = "") -> None:
    """Median seconds and megabytes."""
    seconds = statistics.median(turn.seconds for turn in turns)
    megabytes = statistics.median(turn.megabytes for turn in turns)
    print(f"    {name:44} {seconds:9.3f} s {megabytes:8.0f} MB   {ratio}".rstrip(), flush=True)


def measure(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Turn:
    """One call: seconds, and megabytes at its peak beyond what was there before.

    ``clock``: ``time.process_time`` counts what this process computes, not what it waits for on a busy machine.
    On a GPU the seconds include waiting for it, and the memory is the GPU's. Else it is resident memory of this process
    at its peak, and what loader processes that are still there hold for themselves (Linux; NaN elsewhere).
    """
    on_gpu = torch.cuda.is_available()
    gc.collect()  # what the last call left, loader processes too
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 1e6 if on_gpu else _forget_peak()
    start = clock()
    result = run()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - start
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else _resident("VmHWM") + _held_by_children()
    del result
    return Turn(seconds, peak - before)


def megabytes_of_tensors(run: Callable[[], object]) -> float:
    """What tensors of one call take at its peak beyond those that were there before: what torch allocates.

    Unlike resident memory it is the same in every run, whatever the process has left in pieces. ``run`` is called
    twice: what a call frees that the one before it made is no longer there. What was made before is taken to stay.
    """
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
        run()
    now = peak = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type().name.lower() == wanted:
            now += event.nbytes()
            peak = max(peak, now)
    return peak / 1e6


def measure_program(command: Sequence[str]) -> Turn:
    """A program from its start to its end, and its peak resident memory (Linux; NaN elsewhere).

    Raises: RuntimeError when it fails.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        megabytes = float("nan")
        while process.poll() is None:  # wait4 would count what this process held when it started the other
            megabytes = _megabytes(Path(f"/proc/{process.pid}/status"), "VmHWM") or megabytes
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')[-2000:]}")
    return Turn(seconds, megabytes)


def machine(threads: int) -> str:
    """One line about where this runs, with the load that other programs put on it."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {threads} threads"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{where}; Python {platform.python_version()}, torch {torch.__version__}{load}; {time.strftime('%Y-%m-%d')}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _forget_peak() -> float:
    if not PROC.exists():
        return float("nan")
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what is free must not hide what is taken
    (PROC / "clear_refs").write_text("5")
    return _resident("VmRSS") + _held_by_children()


def _resident(field: str) -> float:
    return _megabytes(PROC / "status", field)


def _held_by_children() -> float:
    """Memory that belongs to child processes alone, at this moment."""
    pids = [pid for task in (PROC / "task").glob("*/children") for pid in task.read_text().split()]
    return sum(_megabytes(Path(f"/proc/{pid}/smaps_rollup"), "Private") for pid in pids)


def _megabytes(file: Path, field: str) -> float:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # the process has ended, or this is no Linux
        return float("nan") if file.is_relative_to(PROC) else 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3
