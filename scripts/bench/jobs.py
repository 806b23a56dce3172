"""Whole jobs, from files to files: the project's commands beside scripts as a person writes them first, in turns.

    python scripts/bench/jobs.py [--only classify-shared,mal] [--turns 3] [--threads 2] [--quick]

``train`` of one epoch with its validation and checkpoint, ``evaluate``, ``inference``; every job in a process of its
own, its seconds counted from the end of the imports, the same for both. What both evaluate to, and their scores,
masks and neighbours, are compared after the first turn. The data is drawn: photographs of 512 × 512 under four lights
with 20 rows for every golden (``classify-shared``) or one (``classify``), scenes of 256 × 256 (``segment``),
photographs of 1280 × 960 with six boxes each (``mal``; without the quality of labels, which would need more passes),
and of 1000 × 750 (``mlrecog``). The exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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
from pycocotools import mask as coco_mask

from fiducial import cli
from fiducial.run.status import read_status

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


def mal_data(folder: Path, *, pictures: int, quick: bool) -> dict[str, Any]:
    """Pictures with boxes and polygons in them, the same to train on and to label."""
    rng = np.random.default_rng(0)
    height, width = (96, 128) if quick else (960, 1280)
    side = height // 4
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(pictures):
        draw(folder / "images" / f"{number}.jpg", rng, height, width)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for _ in range(6):
            x, y = (int(rng.integers(0, length - side)) for length in (width, height))
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            box = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": [x, y, side, side]}
            annotations.append({**box, "area": side**2, "iscrowd": 0, "segmentation": [corners]})
    path = folder / "annotations.json"
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    data = {f"{split}_{key}": str(value) for split in ("train", "val") for key, value in _of_boxes(folder).items()}
    sizes = {"crop_size": 64 if quick else 224, "min_obj_size": 64, "num_workers_per_gpu": 0 if quick else 2}
    return {
        "wandb": {"enable": False},
        "model": {"arch": "vit-deit-tiny/16" if quick else "vit-deit-small/16", "teacher_init": "student"},
        "dataset": data | sizes,
        "train": {"num_epochs": 1, "batch_size": 3, "mask_thres": [0.5], "use_amp": False},
        "evaluate": {"batch_size": 3, "compute_ap": False},
        "inference": _of_boxes(folder) | {"batch_size": 3, "quality": False, "label_dump_path": "labels.json"},
    }


def _of_boxes(folder: Path) -> dict[str, str]:
    return {"ann_path": str(folder / "annotations.json"), "img_dir": str(folder / "images")}


def recog_data(folder: Path, *, classes: int, quick: bool) -> dict[str, Any]:
    """Pictures of products: eight of each to train on, four in the gallery, four that ask."""
    rng = np.random.default_rng(0)
    height, width = (96, 128) if quick else (750, 1000)
    for part, count in (("train", 8), ("reference", 4), ("query", 4)):
        for product in range(classes):
            for number in range(count):
                draw(folder / part / f"product{product}" / f"{number}.jpg", rng, height, width)
    side, batch = (64, 8) if quick else (224, 16)
    sides = {part: str(folder / part) for part in ("reference", "query")}
    return {
        "wandb": {"enable": False},
        "model": {"backbone": "resnet_50", "input_width": side, "input_height": side},
        "dataset": {"train_dataset": str(folder / "train"), "val_dataset": sides, "workers": 0 if quick else 2},
        "train": {"num_epochs": 1, "batch_size": batch, "val_batch_size": batch},
        "evaluate": {"batch_size": batch},
        "inference": {"batch_size": batch, "topk": 4, "input_path": sides["query"]},
    }


@dataclass(frozen=True)
class Case:
    """``draw`` makes the data of a ``job``, whose command is that of ``network``, and the spec that reads them."""

    network: str
    job: str
    draw: Callable[..., dict[str, Any]]


CASES = {
    "classify-shared": Case("changenet", "classify", partial(classify_data, goldens=2, rows=20)),
    "classify": Case("changenet", "classify", partial(classify_data, goldens=40, rows=1)),
    "segment": Case("changenet", "segment", partial(segment_data, rows=16)),
    "mal": Case("mal", "mal", partial(mal_data, pictures=24)),
    "mlrecog": Case("mlrecog", "mlrecog", partial(recog_data, classes=24)),
}
QUICK = {
    "classify-shared": partial(classify_data, goldens=1, rows=8),
    "classify": partial(classify_data, goldens=8, rows=1),
    "segment": partial(segment_data, rows=4),
    "mal": partial(mal_data, pictures=2),
    "mlrecog": partial(recog_data, classes=4),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
    parser.add_argument("--turns", type=int, default=3, help="times that each job is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    parser.add_argument("--run", nargs=4, metavar=("WAY", "CASE", "ACTION", "SPEC"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.run:
        return run(*options.run)
    print(machine(options.threads), flush=True)
    met = True
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make = QUICK[name] if options.quick else CASES[name].draw
            tree = make(Path(folder), quick=options.quick)
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
                spent[way].append(seconds(way, name, action, spec, threads))
        if action == "train":
            model = next((folder / "ours-0" / "train").glob("*_latest.pth")).resolve()
            for other in ("evaluate", "inference"):
                tree = tree | {other: tree.get(other, {}) | {"checkpoint": str(model)}}
            if turn == 0 and action != "train":
                assert_equal(CASES[name].job, action, *(folder / f"{way}-0" / action for way in WAYS))
        wanted = TRAIN if action == "train" else SHARED if name == "classify-shared" else ALONE
        ratio = statistics.median(a / b for a, b in zip(spent["plain"], spent["ours"], strict=True))
        verdict = "met" if ratio >= wanted else "MISSED"
        met &= ratio >= wanted
        print(f"{name}, {action}")
        for way, told in WAYS.items():
            print(f"    {told:26} {statistics.median(spent[way]):8.2f} s")
        print(f"    {ratio:.2f}x  (target {wanted:g}: {verdict})", flush=True)
    return met


def seconds(way: str, name: str, action: str, spec: Path, threads: int) -> float:
    """A job in a process of its own, from the end of its imports."""
    command = [sys.executable, __file__, "--threads", str(threads), "--run", way, name, action, str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} {action} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def run(way: str, name: str, action: str, spec: str) -> int:
    """The job; its seconds are the last line."""
    case = CASES[name]
    package = case.network if case.network == case.job else f"{case.network}.{case.job}"
    tasks = import_module(f"{case.network}.__main__").TASKS
    for module in ("lightning", "datamodule", "outputs", "runtime"):
        import_module(f"{package}.{module}")
    start = time.perf_counter()
    if way == "ours":
        code = cli.main(tasks, [action, "-e", spec], prog=case.network)
    else:
        tree = yaml.safe_load(Path(spec).read_text())
        folder = Path(tree["results_dir"], action)
        folder.mkdir(parents=True)
        torch.manual_seed(1234)
        plain_jobs.ACTIONS[action](plain_jobs.JOBS[case.job](tree), folder)
        code = 0
    print(time.perf_counter() - start, flush=True)
    return code


def assert_equal(job: str, action: str, plain: Path, ours: Path) -> None:
    """Raises: AssertionError unless numbers are equal but for rounding, and masks but for a few pixels."""
    if action == "evaluate":
        expected: dict[str, float] = json.loads((plain / "numbers.json").read_text())
        kpis = read_status(ours / "status.json")[-1]["kpi"]
        np.testing.assert_allclose([kpis[name] for name in expected], list(expected.values()), rtol=1e-3)
    elif job == "segment":
        masks = list(plain.glob("*.png"))
        if not masks:
            raise AssertionError(f"no masks in {plain}")
        for path in masks:
            (found,) = ours.rglob(path.name)
            same_masks(path.name, np.asarray(Image.open(path)) > 0, np.asarray(Image.open(found)) > 0)
    elif job == "mal":
        for one, other in zip(labels(plain), labels(ours), strict=True):
            same_masks(f"annotation {one['id']}", *(coco_mask.decode(x["segmentation"]) > 0 for x in (one, other)))
    else:
        np.testing.assert_allclose(numbers(job, plain), numbers(job, ours), atol=1e-3)


def same_masks(name: str, one: Any, other: Any) -> None:
    if (one != other).mean() > 1e-3:
        raise AssertionError(f"{name}: {(one != other).mean():.1%} of the pixels differ")


def labels(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "labels.json").read_text())["annotations"]
    return found


def numbers(job: str, folder: Path) -> list[Any]:
    """Scores of rows; of each query the distances of its neighbours, nearest first."""
    if job == "mlrecog":
        with (folder / "result.csv").open(newline="", encoding="utf-8") as file:
            return [json.loads(row[2]) for row in csv.reader(file)]
    with (folder / "inference.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["siamese_score"]) for row in csv.DictReader(file)]


if __name__ == "__main__":
    sys.exit(main())
