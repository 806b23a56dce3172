"""What a GPU does with all networks, in one run of under eight minutes; on the CPU with --quick, to see that it runs.

    python scripts/bench/gpu.py [--only abcd] [--minutes 8] [--quick]

(a) deformable attention, every kernel that runs here, its bytes per second beside those of a plain copy;
(b) steps of every network, training and inference, in fp32, tf32 and bf16, and compiled in bf16: items per second, and
    memory at the peak beyond weights and optimizer state;
(c) the same in bf16 for growing batches, until memory ends;
(d) pairs per second that the loaders give, by number of processes, beside what training takes.

Seconds are medians. Nothing is begun when the minutes are over, and what was left out is named.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import classify
import ms_deform_attn
import torch
import torch.nn.functional as F
from measure import Turn, machine, measure
from torch import Tensor, nn

from changenet.classify.model import build_classifier
from changenet.segment.losses import cross_entropy
from changenet.segment.model import build_segmenter
from fiducial.training.compiled import compile_training
from fiducial.training.optim import build_optimizer
from mal.model import build_labeler
from mal.training import Objective, ema_update
from mlrecog.losses import TripletObjective
from mlrecog.model import build_recognizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scale:
    """How much is measured. ``sides``: of pictures of classify (height, width), segment, mal and mlrecog."""

    classify: tuple[int, int] = (512, 128)
    sides: tuple[int, int, int] = (256, 512, 224)
    fan: str = "fan_small_12_p4_hybrid"
    vit: str = "vit-mae-base/16"
    batch: int = 16
    sweep: tuple[int, ...] = (4, 32, 64, 128, 256)
    repeats: int = 5
    workers: tuple[int, ...] = (2, 4, 8, 16)


QUICK = Scale((64, 32), (64, 64, 32), "fan_tiny_8_p4_hybrid", "vit-deit-tiny/16", 2, (4,), 1, (0,))


@dataclass(frozen=True)
class Step:
    """A network with all that a step of it needs."""

    trained: nn.Module
    call: str
    """The method of ``trained`` that is called, and compiled."""
    batch: Callable[[int], Batch]
    loss: Callable[[Batch], Tensor]
    infer: Callable[[Batch], object]
    after: Callable[[], None] = lambda: None


def pictures(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, device=DEVICE)


def classify_step(scale: Scale) -> Step:
    network = build_classifier(backbone=scale.fan, difference_module="learnable", image_size=scale.classify).to(DEVICE)

    def batch(n: int) -> Batch:
        label = torch.arange(n, device=DEVICE) % 2
        return {"test": pictures(n, 3, *scale.classify), "golden": pictures(n, 3, *scale.classify), "label": label}

    def run(b: Batch) -> Tensor:
        return network(b["test"], b["golden"])  # type: ignore[no-any-return]

    return Step(network, "forward", batch, lambda b: F.cross_entropy(run(b), b["label"]), run)


def segment_step(scale: Scale) -> Step:
    side = scale.sides[0]
    network = build_segmenter(backbone=scale.fan, image_size=(side, side)).to(DEVICE)

    def batch(n: int) -> Batch:
        label = (pictures(n, side, side) > 0.9).to(torch.uint8)
        return {"A": pictures(n, 3, side, side), "B": pictures(n, 3, side, side), "L": label}

    def run(b: Batch) -> Tensor:
        return network.predictions(b["A"], b["B"], auxiliary=False)[-1]

    return Step(network, "predictions", batch, lambda b: cross_entropy(run(b), b["L"]), run)


def mal_step(scale: Scale) -> Step:
    side, objective = scale.sides[1], Objective()
    student, teacher = (build_labeler(scale.vit).to(DEVICE) for _ in range(2))
    teacher.requires_grad_(False)

    def batch(n: int) -> Batch:
        area = torch.tensor([500.0, 5000.0, 50000.0]).repeat(n)[:n]  # stays on the CPU
        box = F.pad(torch.ones(n, 1, side // 2, side // 2, device=DEVICE), (side // 4,) * 4)
        return {"image": pictures(n, 3, side, side), "area": area, "box": box}

    def loss(b: Batch) -> Tensor:
        with torch.no_grad():
            taught = teacher(b["image"], b["area"])
        return objective(student(b["image"], b["area"]), taught, b["image"], b["box"], epoch=1, step=0).total

    def after() -> None:
        ema_update(list(teacher.parameters()), list(student.parameters()), momentum=0.996)

    return Step(student, "forward", batch, loss, lambda b: student(b["image"], b["area"]), after)


def mlrecog_step(scale: Scale) -> Step:
    side, objective = scale.sides[2], TripletObjective()
    network = build_recognizer("resnet_50", feat_dim=256, image_size=(side, side)).to(DEVICE)

    def batch(n: int) -> Batch:
        return {"image": pictures(n, 3, side, side), "label": torch.arange(n, device=DEVICE) // 2}

    def run(b: Batch) -> Tensor:
        return network(b["image"])  # type: ignore[no-any-return]

    return Step(network, "forward", batch, lambda b: objective(run(b), b["label"]).loss, run)


STEPS: dict[str, Callable[[Scale], Step]] = {
    "classify": classify_step,
    "segment": segment_step,
    "mal": mal_step,
    "mlrecog": mlrecog_step,
}


class Clock:
    """Says when it is too late to begin something."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float = 0.0) -> bool:
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False


@contextlib.contextmanager
def number_format(name: str) -> Iterator[None]:
    """fp32, tf32 or bf16."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"
    with torch.autocast(DEVICE, torch.bfloat16) if name == "bf16" else contextlib.nullcontext():
        yield


def timed(run: Callable[[], object], repeats: int) -> Turn:
    """The median, after two runs that set up what is set up once."""
    for _ in range(2):
        run()
    turns = [measure(run) for _ in range(repeats)]
    return Turn(statistics.median(t.seconds for t in turns), max(t.megabytes for t in turns))


def run_steps(step: Step, size: int, form: str, repeats: int) -> tuple[Turn, Turn]:
    """A training step and inference."""
    optimizer = build_optimizer("adamw", step.trained.parameters(), lr=1e-5, weight_decay=0.01)
    batch = step.batch(size)

    def train() -> None:
        optimizer.zero_grad()
        with number_format(form):
            loss = step.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step.after()

    def infer() -> object:
        with torch.no_grad(), number_format(form):
            return step.infer(batch)

    step.trained.train()
    trained = timed(train, repeats)
    optimizer.zero_grad()
    step.trained.eval()
    return trained, timed(infer, repeats)


def tell(name: str, form: str, size: int, turns: tuple[Turn, Turn]) -> None:
    said = "   ".join(
        f"{what} {1e3 * turn.seconds:9.1f} ms {size / turn.seconds:9.1f}/s {turn.megabytes:8.0f} MB"
        for what, turn in zip(("training", "inference"), turns, strict=True)
    )
    print(f"    {name:9} {form:15} batch {size:4}   {said}", flush=True)


def forms(scale: Scale, clock: Clock) -> None:
    """(b)"""
    print("(b) steps of every network")
    for name, make in STEPS.items():
        step = make(scale)
        for form in ("fp32", "tf32", "bf16"):
            if clock.allows(f"b: {name} {form}"):
                tell(name, form, scale.batch, run_steps(step, scale.batch, form, scale.repeats))
    for name, make in STEPS.items():  # the last, as it may take minutes
        if clock.allows(f"b: {name} compiled", 90 if DEVICE == "cuda" else 0):
            step, form = make(scale), "not compiled"
            if DEVICE == "cuda":
                compile_training(step.trained, step.call)
                form = "bf16, compiled"
            tell(name, form, scale.batch, run_steps(step, scale.batch, "bf16", scale.repeats))
        torch.compiler.reset()


def sweep(scale: Scale, clock: Clock) -> None:
    """(c)"""
    print("(c) bf16, growing batches")
    for name, make in STEPS.items():
        step = make(scale)
        for size in scale.sweep:
            if not clock.allows(f"c: {name} batch {size}", 5):
                break
            try:
                tell(name, "bf16", size, run_steps(step, size, "bf16", scale.repeats))
            except torch.OutOfMemoryError:
                print(f"    {name:9} bf16            batch {size:4}   does not fit", flush=True)
                break
            finally:
                gc.collect()
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()


def loading(scale: Scale, clock: Clock, data: Path, *, quick: bool) -> None:
    """(d)"""
    print("(d) loaders of classify: pairs of four lights of 512 x 512, at 128 x 128 each")
    amount = classify.QUICK if quick else classify.Scale()
    classify.draw_data(data, amount)
    for workers in scale.workers:
        if (workers and workers > (os.cpu_count() or 1)) or not clock.allows(f"d: {workers} processes", 10):
            continue
        loader = classify.runtime_of(data, amount, workers=workers).datamodule().train_dataloader()
        rows = sum(len(batch["label"]) for batch in loader)  # its processes start, and know their goldens
        turn = measure(lambda loader=loader: [batch["test"].to(DEVICE, non_blocking=True) for batch in loader] and None)
        print(f"    {workers:3} processes {rows / turn.seconds:10.1f} pairs/s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what ``--only`` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="abcd", help="letters of the parts to run")
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun after them")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if DEVICE == "cpu" and not options.quick:
        parser.error("there is no GPU: --quick runs it on the CPU, to see whether it runs")
    scale, clock = (QUICK if options.quick else Scale()), Clock(options.minutes)
    print(machine(torch.get_num_threads()))
    kernels = ["--device", DEVICE, "--threads", str(torch.get_num_threads())]
    kernels += ["--only", "224", "--repeats", "1"] if options.quick else ["--repeats", "20"]
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], object]] = {
            "a": lambda: (print("(a) deformable attention"), ms_deform_attn.main(kernels)),
            "d": partial(loading, scale, clock, Path(folder), quick=options.quick),
            "c": partial(sweep, scale, clock),
            "b": partial(forms, scale, clock),
        }
        for letter, run in parts.items():
            if letter in options.only and clock.allows(letter):
                run()
    if clock.left_out:
        print(f"left out after {options.minutes:g} minutes: {', '.join(clock.left_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
