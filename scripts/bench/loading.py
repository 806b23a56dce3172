"""What kept pictures save: loaders with ``cache: ram`` beside those that open, decode and resize every picture.

    python scripts/bench/loading.py [--rows 64] [--workers 0] [--turns 5] [--cpu] [--quick]

Every network's own data set, in the order of evaluation: pairs of four lights (400 × 400 JPEG to 128 × 128), scenes
with masks (1024 × 1024 PNG to 256 × 256), photos of classes (1000 × 750 JPEG to 224 × 224), crops of seven boxes a
photo (640 × 480 JPEG). Batches are equal bit for bit, which is asserted first. The loader as a whole also composes and
normalises, and is to be five times faster; MAL's resizes every crop, so that only its reading can be. Opening and
resizing alone is shown, too. ``--cpu`` counts what this process and its loader processes compute instead of the clock's
time, for a busy machine. With ``--workers`` the loader processes are there before an epoch is measured, as they are in
all epochs of a training but the first. The exit code is 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from measure import PROC, Way, compare, machine, measure
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from changenet.classify.data import PairDataset
from changenet.classify.rows import Layout, PairTable, read_csv
from changenet.segment.data import SceneDataset
from changenet.segment.files import ScenePair, Split
from changenet.segment.reading import LabelEncoding, SceneReader
from fiducial.data import kept
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import PictureCache
from mal.annotations import Rules, read_annotations, select
from mal.data import IMAGENET, BoxDataset, BoxReader
from mlrecog.data import ClassImages
from mlrecog.folders import Sample
from mlrecog.transforms import EvalTransform

TARGET = 5.0
"""How many times faster kept pictures are to be than opening and resizing them."""
NORMALIZE = Normalization(IMAGENET.mean, IMAGENET.std)
LIGHTS = ("a", "b", "c", "d")
BOXES = 7
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    """A network's data: what makes its data set, and what gets the pictures of an item. ``target``: the loader's."""

    name: str
    dataset: Callable[[PictureCache | None], Dataset[Any]]
    pictures: Callable[[Any, int], object]
    target: float | None


def draw(path: Path, rng: np.random.Generator, height: int, width: int, channels: int = 3) -> Path:
    """A picture with coarse and fine parts, as photos have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = (picture + rng.integers(-12, 13, picture.shape)).clip(0, 255).astype(np.uint8)
    mask = (picture[..., 0] > 128).astype(np.uint8) * 255
    Image.fromarray(noisy if channels == 3 else mask).save(path, quality=90)
    return path


def classify(root: Path, rows: int) -> Case:
    rng = np.random.default_rng(0)
    lines = ["input_path,golden_path,label,object_name"]
    for number in range(rows):
        for side in ("test", "golden"):
            for light in LIGHTS:
                draw(root / side / f"{number}_{light}.jpg", rng, 400, 400)
        lines.append(f"test,golden,PASS,{number}")
    (root / "rows.csv").write_text("\n".join(lines))
    columns, read = read_csv(root / "rows.csv")
    layout = Layout(LIGHTS, ".jpg", (128, 128), (2, 2), 1)
    table = PairTable(root / "rows.csv", root, columns, tuple(read), layout)

    def pictures(data: PairDataset, row: int) -> object:
        return data.reader.tiles(table.rows[row], (), Image.Resampling.BILINEAR)

    def dataset(shared: PictureCache | None) -> PairDataset:
        return PairDataset(table, NORMALIZE, cache_mb=0, shared=shared)

    return Case("classify", dataset, pictures, TARGET)


def segment(root: Path, rows: int) -> Case:
    rng = np.random.default_rng(1)
    pairs = []
    for number in range(rows):
        before, after = (draw(root / part / f"{number}.png", rng, 1024, 1024) for part in ("A", "B"))
        label = draw(root / "label" / f"{number}.png", rng, 1024, 1024, channels=1)
        pairs.append(ScenePair(f"{number}.png", number + 1, before, after, label))
    split = Split(root / "list.txt", tuple(pairs))

    def dataset(shared: PictureCache | None) -> SceneDataset:
        return SceneDataset(split, SceneReader(LabelEncoding(True, 2), shared=shared), NORMALIZE, side=256)

    return Case("segment", dataset, lambda data, row: data.reader.resized(pairs[row], 256), TARGET)


def mlrecog(root: Path, rows: int) -> Case:
    rng = np.random.default_rng(2)
    samples = [Sample(draw(root / f"{number}.jpg", rng, 750, 1000), number % 8) for number in range(rows)]
    transform = EvalTransform((224, 224), NORMALIZE)
    return Case(
        "mlrecog",
        lambda shared: ClassImages(samples, transform, shared=shared),
        lambda data, row: data.pictures.rgb(samples[row].path, transform.larger),
        TARGET,
    )


def mal(root: Path, rows: int) -> Case:
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for number in range(max(1, rows // BOXES)):
        draw(root / "images" / f"{number}.jpg", rng, 480, 640)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        for _ in range(BOXES):
            x, y = (int(value) for value in rng.integers(0, 300, 2))
            box = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": [x, y, 120, 120]}
            annotations.append({**box, "area": 14400, "iscrowd": 0})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "ann.json").write_text(json.dumps(coco))
    read = read_annotations(root / "ann.json")
    boxes = select(read, Rules()).boxes

    def dataset(shared: PictureCache | None) -> BoxDataset:
        reader = BoxReader(read, root / "images", crop_size=512, margin=0.3, cache_mb=0, shared=shared)
        return BoxDataset(reader, boxes)

    return Case("mal", dataset, lambda data, row: data.reader.picture(boxes[row]), None)


CASES = {"classify": classify, "segment": segment, "mlrecog": mlrecog, "mal": mal}


def batches(dataset: Dataset[Any]) -> list[dict[str, Any]]:
    return list(DataLoader(dataset, batch_size=8))


def epochs(dataset: Dataset[Any], workers: int) -> Callable[[], object]:
    """What goes over all batches, once it has started its loader processes."""
    loader = DataLoader(dataset, batch_size=8, num_workers=workers, persistent_workers=workers > 0)

    def epoch() -> None:
        for _ in loader:
            pass

    epoch()
    return epoch


def computed() -> float:
    """Seconds that this process and its children have computed (Linux; elsewhere this process alone)."""
    tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    pids = [pid for task in (PROC / "task").glob("*/children") for pid in task.read_text().split()]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(each[11]) + int(each[12]) for each in fields) / tick


def same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)


def run(case: Case, *, workers: int, turns: int, meter: Any) -> bool:
    cache = PictureCache(CACHE_BYTES)
    read, kept_ones = case.dataset(None), case.dataset(cache)
    length = len(read)  # type: ignore[arg-type]
    print(f"{case.name}: {length} rows, {workers} loader processes")
    for _ in range(2):
        if not same(batches(read), batches(kept_ones)):
            raise AssertionError(f"{case.name}: other batches")

    def pictures(data: Dataset[Any]) -> Callable[[], object]:
        return lambda: [case.pictures(data, row) for row in range(length)]

    whole = [Way(name, epochs(data, workers)) for name, data in (("loader", read), ("cache: ram", kept_ones))]
    all_of_it = compare(*whole, turns=turns, target=case.target, meter=meter)
    alone = [Way(name, pictures(data)) for name, data in (("opening and resizing", read), ("kept", kept_ones))]
    return compare(*alone, turns=turns, target=TARGET, meter=meter).met and all_of_it.met


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="some of the networks, with commas between them")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few rows, one turn: that it runs")
    given = parser.parse_args(arguments)
    rows, turns = (8, 1) if given.quick else (given.rows, given.turns)
    kept.SETTLED_NS = 0  # pictures that were written just now
    meter = partial(measure, clock=computed) if given.cpu else measure
    print(machine(torch.get_num_threads()))
    met = []
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = CASES[name](Path(folder), rows)
            met.append(run(case, workers=given.workers, turns=turns, meter=meter))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
