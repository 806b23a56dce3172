"""Whole jobs, from files to files: the project's commands beside scripts as a person writes them first, in turns.

    python scripts/bench/jobs.py [--only classify-shared,classify,segment] [--turns 3] [--threads 2] [--quick]

``train`` of one epoch with its validation and checkpoint, ``evaluate``, ``inference``; every job in a process of its
own, its seconds counted from the end of the imports, the same for both. Scores and masks of both are compared.
The data is drawn: photographs of 512 × 512 under four lights with 20 rows for every golden (``classify-shared``) or one
(``classify``), scenes of 256 × 256. The exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before this folder, whose mal is another program

from fiducial.run.threads import yield_when_idle

if "ours" in sys.argv:  # what the command line does before torch is imported
    yield_when_idle()

import numpy as np
import plain_jobs
import torch
import yaml
from classify import FAN, Scale, draw_data, spec_tree
from loading import draw
from measure import machine
from PIL import Image

from changenet.__main__ import TASKS
from fiducial import cli

ACTIONS = ("train", "evaluate", "inference")
SHARED, ALONE, TRAIN = 2.2, 1.25, 1.2
WAYS = {"plain": "straightforward script", "ours": "this project's command"}


def classify_data(folder: Path, *, goldens: int, rows: int, quick: bool) -> dict[str, Any]:
    """``rows`` for each of some goldens; a spec that reads them."""
    scale = Scale(goldens, 0, rows, 64 if quick else 512, 32 if quick else 128, 8, FAN)
    if quick:
        scale = Scale(goldens, 0, rows, 64, 32, 4, "fan_tiny_8_p4_hybrid")
    draw_data(folder, scale)
    return spec_tree(folder, scale, workers=0 if quick else 2)


def segment_data(folder: Path, *, rows: int, quick: bool) -> dict[str, Any]:
    """Scenes with masks; a spec that reads them, and augments nothing."""
    rng, side = np.random.default_rng(0), 64 if quick else 256
    names = [f"scene{number}.png" for number in range(rows)]
    for name in names:
        draw(folder / "A" / name, rng, side, side)
        draw(folder / "B" / name, rng, side, side)
        draw(folder / "label" / name, rng, side, side, channels=1)
    (folder / "list").mkdir()
    for split in ("train", "val", "test", "predict"):
        (folder / "list" / f"{split}.txt").write_text("\n".join(names) + "\n")
    off = {"enable": False}
    return {
        "task": "segment",
        "wandb": {"enable": False},
        "model": {"backbone": {"type": "fan_tiny_8_p4_hybrid" if quick else FAN}},
        "dataset": {
            "segment": {
                "root_dir": str(folder),
                "img_size": side,
                "batch_size": 2 if quick else 4,
                "workers": 0 if quick else 2,
                "augmentation": {
                    **dict.fromkeys(("random_flip", "random_rotate", "random_color", "with_scale_random_crop"), off),
                    "with_random_crop": False,
                    "with_random_blur": False,
                    "mean": [0.5] * 3,
                    "std": [0.5] * 3,
                },
            }
        },
        "train": {"num_epochs": 1},
    }


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "classify-shared": partial(classify_data, goldens=2, rows=20),
    "classify": partial(classify_data, goldens=40, rows=1),
    "segment": partial(segment_data, rows=16),
}
QUICK: dict[str, Callable[..., dict[str, Any]]] = {
    "classify-shared": partial(classify_data, goldens=1, rows=8),
    "classify": partial(classify_data, goldens=8, rows=1),
    "segment": partial(segment_data, rows=4),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
    parser.add_argument("--turns", type=int, default=3, help="times that each job is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    parser.add_argument("--run", nargs=3, metavar=("WAY", "ACTION", "SPEC"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.run:
        return run(*options.run)
    print(machine(options.threads), flush=True)
    met = True
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            tree = (QUICK if options.quick else CASES)[name](Path(folder), quick=options.quick)
            met &= compared(name, Path(folder), tree, 1 if options.quick else options.turns, options.threads)
    return int(not met and not options.quick)


def compared(name: str, folder: Path, tree: dict[str, Any], turns: int, threads: int) -> bool:
    """All actions of a case, the first the training whose model the others read."""
    met = True
    for action in ACTIONS:
        spent: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(turns):
            for way in WAYS:
                spec = folder / f"{way}-{action}-{turn}.yaml"
                spec.write_text(yaml.safe_dump(tree | {"results_dir": str(folder / f"{way}-{turn}")}))
                spent[way].append(seconds(way, action, spec, threads))
        if action == "train":
            model = next((folder / "ours-0" / "train").glob("*_latest.pth")).resolve()
            tree = tree | {other: {"checkpoint": str(model)} for other in ("evaluate", "inference")}
        if action == "inference":
            assert_equal(folder / "plain-0" / "inference", folder / "ours-0" / "inference")
        wanted = TRAIN if action == "train" else SHARED if name == "classify-shared" else ALONE
        ratio = statistics.median(a / b for a, b in zip(spent["plain"], spent["ours"], strict=True))
        verdict = "met" if ratio >= wanted else "MISSED"
        met &= ratio >= wanted
        print(f"{name}, {action}")
        for way, told in WAYS.items():
            print(f"    {told:26} {statistics.median(spent[way]):8.2f} s")
        print(f"    {ratio:.2f}x  (target {wanted:g}: {verdict})", flush=True)
    return met


def seconds(way: str, action: str, spec: Path, threads: int) -> float:
    """A job in a process of its own, from the end of its imports."""
    command = [sys.executable, __file__, "--threads", str(threads), "--run", way, action, str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} {action} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def run(way: str, action: str, spec: str) -> int:
    """The job; its seconds are the last line."""
    for module in ("lightning", "datamodule", "outputs", "runtime"):
        for task in ("classify", "segment"):
            __import__(f"changenet.{task}.{module}")
    start = time.perf_counter()
    if way == "ours":
        code = cli.main(TASKS, [action, "-e", spec], prog="changenet")
    else:
        tree = yaml.safe_load(Path(spec).read_text())
        folder = Path(tree["results_dir"], action)
        folder.mkdir(parents=True)
        torch.manual_seed(1234)
        plain_jobs.ACTIONS[action](plain_jobs.JOBS[tree["task"]](tree), folder)
        code = 0
    print(time.perf_counter() - start, flush=True)
    return code


def assert_equal(plain: Path, ours: Path) -> None:
    """Raises: AssertionError unless scores are equal but for rounding, and masks but for a few pixels."""
    if (plain / "inference.csv").exists():
        np.testing.assert_allclose(scores(plain), scores(ours), atol=1e-3)
        return
    for path in plain.glob("*.png"):
        (found,) = ours.rglob(path.name)
        differ = (np.asarray(Image.open(path)) > 0) != (np.asarray(Image.open(found)) > 0)
        if differ.mean() > 1e-3:
            raise AssertionError(f"{path.name}: {differ.mean():.1%} of the pixels differ")


def scores(folder: Path) -> list[float]:
    with (folder / "inference.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["siamese_score"]) for row in csv.DictReader(file)]


if __name__ == "__main__":
    sys.exit(main())
