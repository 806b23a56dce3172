"""What a step of every network costs beside the straightforward way of computing the same, in turns in one run.

    python scripts/bench/steps.py [--only mal,mlrecog] [--modes inference,training] [--turns 5] [--threads 2] [--quick]
    python scripts/bench/steps.py --threads 1 --cpu-time      # on a machine that others use too

Inference: straightforward, ours, ours with torch's linear layers, ours compiled (which takes a minute, once). Training,
forward to the optimizer's step: straightforward, ours, ours with torch's linear layers, ours with activation
checkpointing. Straightforward is what ``plain.py`` describes, with torch's own optimizers.

Both ways must give the same results, and in training the same gradients, before anything is timed. Each way runs in
processes of its own, in turns; ours with memory allocated as the command line has it. Ratios are medians of those of
neighbouring turns. Memory is the most that a run holds beyond what was there before it, weights and what the
optimizer keeps: of the process, which the target is for, and what torch allocates. The profile is that of ours: the
share of matrix products, convolutions and attention, and what takes most of the rest. The exit code is 1 when a
target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from cases import CASES, QUICK, Case
from measure import machine, measure, megabytes_of_tensors
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fiducial.ops.fastest import VARIABLE
from fiducial.run.allocator import keep_freed_memory

ROUNDING, GRADIENT_ROUNDING = 1e-3, 1e-2
"""By which results, and losses and gradients, may differ between the two ways, of their norm: in float32 a few ReLUs
near 0 open in one and not in the other. (In float64 the tests hold them to 1e-9.)"""
WAYS = {"inference": ("plain", "ours", "linears", "compiled"), "training": ("plain", "ours", "linears", "checkpointed")}
NAMES = {
    "plain": "straightforward",
    "ours": "this project's",
    "linears": "the same with torch's linears",
    "compiled": "compiled",
    "checkpointed": "activations computed again",
}
INFERENCE, COMPILED, TIE, MEMORY, MATRIX = 1.3, 1.6, 0.97, 0.85, 0.85
TRAINING = {"classify-fan": 1.25, "segment-fan": 1.25}
LEAST_TRAINING = 1.15
TIMES = {"inference": 3, "training": 1}
"""How often a process runs what it has once run, in its turn."""
MATRIX_OPS = ("conv", "mm", "bmm", "attention", "linear", "ms_deform_attn")
"""Parts of the names of the operators that multiply matrices."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
    parser.add_argument("--modes", default="inference,training", help="with commas")
    parser.add_argument("--ways", default="plain,ours,linears,compiled,checkpointed", help="with commas")
    parser.add_argument("--turns", type=int, default=5, help="times that each way is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="count computing, not waiting")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    parser.add_argument("--serve", nargs=3, metavar=("CASE", "MODE", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = QUICK if options.quick else CASES
    if unknown := set(options.only.split(",")) - cases.keys():
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    if options.serve:
        name, mode, way = options.serve
        serve(cases[name], mode, way, time.process_time if options.cpu_time else time.perf_counter)
        return 0
    print(machine(options.threads) + ("; CPU time" if options.cpu_time else ""), flush=True)
    flags = ["--threads", str(options.threads)]
    flags += ["--cpu-time"] * options.cpu_time + ["--quick"] * options.quick
    met = True
    for name in options.only.split(","):
        for mode in options.modes.split(","):
            ways = [way for way in WAYS[mode] if way in options.ways.split(",")]
            with process(name, mode, "check", flags):
                pass
            met &= report(name, mode, ways, flags, 1 if options.quick else options.turns)
    return int(not met and not options.quick)


def report(name: str, mode: str, ways: Sequence[str], flags: Sequence[str], turns: int) -> bool:
    """Time the ways in turns and print them; whether the targets are met."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, float] = {}
    tensors: dict[str, float] = {}
    shares: dict[str, float] = {}
    for turn in range(turns):
        for way in ways:
            with process(name, mode, way, flags) as ask:  # one at a time: each may need much memory
                seconds[way].append(statistics.median(float(ask("time")) for _ in range(TIMES[mode])))
                if turn == 0:
                    memory[way], tensors[way] = float(ask("memory")), float(ask("tensors"))
                    shares = json.loads(ask("profile")) if way == "ours" else shares
    print(f"{name}, {mode}")
    met = True
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[ways[0]], seconds[way], strict=True))
        said = "" if way == ways[0] else judged(ratio, target(name, mode, way))
        met &= "MISSED" not in said
        print(f"    {NAMES[way]:30} {statistics.median(seconds[way]):8.3f} s {memory[way]:6.0f} MB   {said}".rstrip())
    if "linears" in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds["linears"], seconds["ours"], strict=True))
        said = judged(ratio, TIE)
        met &= "MISSED" not in said
        print(f"    linears as they are fastest: {said}")
    share = memory["ours"] / memory[ways[0]]
    wanted = f"  (target {MEMORY:g}: {'met' if share <= MEMORY else 'MISSED'})" if mode == "training" else ""
    met &= "MISSED" not in wanted
    print(f"    memory of ours: {share:.2f} of the straightforward one's{wanted}", end="")
    print(f"; what torch allocates of it: {tensors['ours']:.0f} MB, {tensors['ours'] / tensors[ways[0]]:.2f}")
    matrix = shares.pop("matrix")
    wanted = f"  (target {MATRIX:.0%}: {'met' if matrix >= MATRIX else 'MISSED'})" if mode == "inference" else ""
    rest = ", ".join(f"{op} {part:.1%}" for op, part in shares.items())
    print(f"    matrix work {matrix:.0%}{wanted}; {rest}", flush=True)
    return met and "MISSED" not in wanted


def target(name: str, mode: str, way: str) -> float | None:
    """How many times as fast as the straightforward way it should be."""
    if way == "compiled":
        return COMPILED
    if way in ("linears", "checkpointed"):
        return None
    return INFERENCE if mode == "inference" else TRAINING.get(name, LEAST_TRAINING)


def judged(ratio: float, wanted: float | None) -> str:
    """A ratio beside its target."""
    return f"{ratio:.2f}x" + ("" if wanted is None else f"  (target {wanted:g}: {_verdict(ratio >= wanted)})")


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def assert_equal(make: Callable[[], Case], mode: str) -> None:
    """Raises: AssertionError unless both ways give the same result, and in training the same gradients."""
    case = make()
    results = []
    for way in ("plain", "ours"):
        results.append([getattr(case, mode)(way)()])
        if mode == "training":
            results[-1] += [p.grad.clone() for p in trained(case, way) if p.grad is not None]
    total = max(float(x.norm()) for x in results[0])
    rounding = ROUNDING if mode == "inference" else GRADIENT_ROUNDING
    for a, b in zip(*results, strict=True):  # gradients that should be 0 are rounding alone
        if float((a - b).norm()) > rounding * max(float(a.norm()), 1e-3 * total):
            raise AssertionError(f"{mode}: the two ways differ by {(a - b).norm():.1e} of {a.norm():.1e}")


def trained(case: Case, way: str) -> Iterator[Tensor]:
    """The parameters that a way trains, in one order."""
    plain = getattr(case, "plain", None)
    parts = plain if way == "plain" and isinstance(plain, torch.nn.Sequential) else None
    named = case.network.named_parameters() if parts is None else _renamed(parts)
    yield from (parameter for _, parameter in sorted(named, key=lambda item: item[0]))


def _renamed(parts: torch.nn.Sequential) -> Iterator[tuple[str, Tensor]]:
    for part, name in zip(parts, ("trunk", "embedder"), strict=True):
        yield from ((f"{name}.{key}", parameter) for key, parameter in part.named_parameters())


# --- processes of their own ------------------------------------------------------------------------------------------


def serve(make: Callable[[], Case], mode: str, way: str, clock: Callable[[], float]) -> None:
    """Answer, a line each, what is asked in lines on stdin; ``check``: only say that both ways give the same."""
    if way == "check":
        assert_equal(make, mode)
        print("ready", flush=True)
        return
    if way != "plain":
        keep_freed_memory()
    run = getattr(make(), mode)(way)
    run()  # what is set up once
    print("ready", flush=True)
    for line in sys.stdin:
        match line.strip():
            case "time":
                start = clock()
                run()
                answer = str(clock() - start)
            case "memory":
                answer = str(measure(run).megabytes)
            case "tensors":
                answer = str(megabytes_of_tensors(run))
            case _:
                answer = json.dumps(profiled(run))
        print(answer, flush=True)


def profiled(run: Callable[[], object]) -> dict[str, float]:
    """The share of a run's time that is ``matrix`` work, and those of the operators that take most of the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    spent = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(spent.values())
    matrix = {key for key in spent if any(part in key for part in MATRIX_OPS)}
    rest = sorted(spent.keys() - matrix, key=lambda key: -spent[key])
    return {"matrix": sum(spent[key] for key in matrix) / total} | {key: spent[key] / total for key in rest[:6]}


@contextmanager
def process(name: str, mode: str, way: str, flags: Sequence[str]) -> Iterator[Callable[[str], str]]:
    """A process for one way; what is given asks it something."""
    command = [sys.executable, __file__, *flags, "--serve", name, mode, way]
    environment = os.environ | ({VARIABLE: "off"} if way == "linears" else {})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes) as started:

        def ask(what: str) -> str:
            assert started.stdin is not None
            assert started.stdout is not None
            if what:
                started.stdin.write(f"{what}\n")
            line = started.stdout.readline()
            if not line:
                raise RuntimeError(f"{name}, {mode}, {way} failed with {started.wait()}")
            return line.strip()

        try:
            ask("")  # it says when it is ready
            yield ask
        finally:
            started.kill()


if __name__ == "__main__":
    sys.exit(main())
