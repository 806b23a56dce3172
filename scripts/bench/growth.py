"""What one row more costs of every action's work outside the network: time and memory must not grow.

    python scripts/bench/growth.py [--only classify,segment,mal,mlrecog] [--sizes 1000 10000 100000] [--cpu] [--quick]

Data sets are hard links of a few small files: pairs of four lights with a golden each (eight files a row), scenes with
masks (three), boxes (two in a picture), pictures of 200 classes. Outputs of the network are made up. Each size runs in
a process of its own with an empty cache folder, after everything ran once on a few rows; memory is what the process
holds at its peak beyond what it held before. ``--cpu`` counts what the process computes instead of the clock's time:
for a machine that others use too.

The exit code is 1 when a row more, between the two largest sizes, costs more than it should: 0.3 ms a file in the first
look at it, 0.1 ms until the first batch of a training, 2 kB. What is held once, however many rows
there are (a search's or a bootstrap's workspace), does not count there; nor does what a report always shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from measure import Turn, machine, measure
from PIL import Image

from fiducial.data import kept
from fiducial.data.once import one_reading

SIDE = 64
LIGHTS = ("a", "b", "c", "d")
CLASSES = 200
BATCH = 64
DIM = 64
GALLERY = 500
"""Pictures that each query is compared with: of a search, the price of a row is the size of the other side."""
MOST_LINKS = 30_000
"""Links that a file may have: some file systems allow 65 000."""
FEW = 40
FLAT = 1.25
"""How many times the price of a row at the smallest size it may be at the largest, and still be called flat."""


@dataclass(frozen=True)
class Work:
    """Something that is done for every row; ``limit_us``: the microseconds of a row that it may take."""

    name: str
    run: Callable[[], object]
    limit_us: float | None = None


@dataclass(frozen=True)
class Price:
    """Of one row."""

    microseconds: float
    kilobytes: float


# --- data -------------------------------------------------------------------------------------------------------------


class Links:
    """Gives names to a few drawn pictures, over and over."""

    def __init__(self, folder: Path, suffix: str, *, is_mask: bool = False) -> None:
        self.folder, self.suffix, self.is_mask = folder, suffix, is_mask
        self.given = 0
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, path: Path) -> None:
        number = self.given // MOST_LINKS * 16 + self.given % 16
        source = self.folder / f"{number}{self.suffix}"
        if not source.exists():
            rng = np.random.default_rng(number)
            shape = (SIDE, SIDE) if self.is_mask else (SIDE, SIDE, 3)
            pixels = (rng.random(shape) > 0.9) * 255 if self.is_mask else rng.integers(0, 256, shape)
            Image.fromarray(pixels.astype(np.uint8)).save(source)
        os.link(source, path)
        self.given += 1


def pairs(folder: Path, rows: int) -> None:
    """Boards of 500 parts, a fifth of them with a defect."""
    link, images = Links(folder / "drawn", ".png"), folder / "images"
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("input_path", "golden_path", "label", "object_name"))
        for row in range(rows):
            board = images / f"board{row // 500}"
            if row % 500 == 0:
                board.mkdir(parents=True)
                (board / "golden").mkdir()
            for light in LIGHTS:
                link(board / f"part{row}_{light}.png")
                link(board / "golden" / f"part{row}_{light}.png")
            writer.writerow((board.name, f"{board.name}/golden", "PASS" if row % 5 else "SHIFT", f"part{row}"))


def scenes(folder: Path, rows: int) -> None:
    """Two images and a mask each."""
    link, mask = Links(folder / "drawn", ".png"), Links(folder / "masks", ".png", is_mask=True)
    for part in ("A", "B", "label", "list"):
        (folder / part).mkdir()
    names = [f"scene{row:07d}.png" for row in range(rows)]
    for name in names:
        link(folder / "A" / name)
        mask(folder / "label" / name)
    for name in names:  # after each other, so that the two images are two files
        link(folder / "B" / name)
    for split in ("train", "val", "test", "predict"):
        (folder / "list" / f"{split}.txt").write_text("\n".join(names) + "\n")


def boxes(folder: Path, rows: int) -> None:
    """Two boxes with polygons in a picture."""
    link, images, annotations = Links(folder / "drawn", ".jpg"), [], []
    (folder / "images").mkdir()
    for number in range(-(-rows // 2)):
        name = f"photo{number:07d}.jpg"
        link(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
    for row in range(rows):
        x, y, width, height = 4.5 + row % 2, 6.25 + row % 8, 30.5, 31.5
        polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        about = {"id": row, "image_id": row // 2, "category_id": 1 + row % 2, "iscrowd": 0, "area": width * height}
        annotations.append({**about, "bbox": [x, y, width, height], "segmentation": polygon})
    names = [{"id": number, "name": name} for number, name in ((1, "nut"), (2, "bolt"))]
    tree = {"images": images, "annotations": annotations, "categories": names}
    (folder / "boxes.json").write_text(json.dumps(tree))


def classes(folder: Path, rows: int) -> None:
    """Pictures to train on and to look up, and a few in the gallery."""
    link = Links(folder / "drawn", ".jpg")
    for side, count in (("queries", rows), ("gallery", min(rows, GALLERY))):
        for number in range(count):
            of_class = folder / side / f"class{number % CLASSES:03d}"
            if number < CLASSES:
                of_class.mkdir(parents=True)
            link(of_class / f"{number:07d}.jpg")


# --- works ------------------------------------------------------------------------------------------------------------


def batches(rows: int) -> Iterator[range]:
    for start in range(0, rows, BATCH):
        yield range(start, min(start + BATCH, rows))


class Evaluated:
    """An evaluation with made-up outputs, in two works: what is measured, and what is written."""

    def __init__(self, make: Callable[[], Any], fill: Callable[[Any], Iterable[tuple[Any, Any]]], what: str) -> None:
        self.make, self.fill, self.what = make, fill, what
        self.evaluator: Any = None
        self.result: Any = None

    def works(self) -> Iterator[Work]:
        yield Work(f"{self.what}: numbers", self.measured)
        yield Work(f"{self.what}: files and report", self.written)

    def measured(self) -> object:
        self.evaluator = self.make()
        for outputs, batch in self.fill(self.evaluator):
            self.evaluator.update(outputs, batch)
        self.result = self.evaluator.finish()
        return self.evaluator.kpis(self.result)

    def written(self) -> object:
        return self.evaluator.write(self.result, {"model": "none"})


def checks(task: Any, spec: Any, action: tuple[str, ...], *, files: int) -> Iterator[Work]:
    """``files``: of a row."""
    yield Work("check, the first", lambda: task.check_data(spec, action, thorough=True), 300.0 * files)
    yield Work("check again", lambda: task.check_data(spec, action, thorough=True))


def start(task: Any, spec: Any) -> Work:
    """What ``train`` does with the rows before its first batch."""

    def run() -> object:
        with one_reading():  # as every action
            report = task.check_data(spec, ("train",), thorough=False)
            loader = task.runtime(spec).datamodule().train_dataloader()
            return report, loader, next(iter(loader.batch_sampler))

    return Work("train, until the first batch", run, 100.0)


def classify(folder: Path, rows: int) -> Iterator[Work]:
    from changenet.classify.task import CLASSIFY as TASK

    pairs(folder, rows)
    place = {"csv_path": str(folder / "pairs.csv"), "images_dir": str(folder / "images")}
    data: dict[str, Any] = {f"{part}_dataset": place for part in ("train", "test", "infer")}
    data |= {"image_ext": ".png", "num_input": len(LIGHTS), "input_map": {light: i for i, light in enumerate(LIGHTS)}}
    data |= {"workers": 0, "batch_size": min(8, rows)}
    spec = TASK.spec_model().model_validate({"task": "classify", "dataset": {"classify": data}})
    yield from checks(TASK, spec, ("test",), files=2 * len(LIGHTS))
    yield start(TASK, spec)
    runtime: Any = TASK.runtime(spec)

    def fill(evaluator: Any) -> Iterator[tuple[Any, Any]]:
        rng = torch.Generator().manual_seed(0)
        for part in batches(rows):
            label = torch.tensor([int(row % 5 == 0) for row in part])
            score = torch.rand(len(part), generator=rng) + label
            outputs = torch.stack([-score, score], 1) if runtime.learnable else score
            yield {"output": outputs}, {"row": torch.tensor(part), "label": label}

    yield from Evaluated(lambda: runtime.evaluator("test", folder=folder), fill, "evaluate").works()
    yield from Evaluated(lambda: runtime.evaluator("infer", folder=folder), fill, "inference").works()


def segment(folder: Path, rows: int) -> Iterator[Work]:
    from changenet.segment.model import FINAL
    from changenet.segment.task import SEGMENT as TASK

    scenes(folder, rows)
    data = {"root_dir": str(folder), "label_suffix": ".png", "workers": 0, "batch_size": min(8, rows)}
    spec = TASK.spec_model().model_validate({"task": "segment", "dataset": {"segment": data}})
    yield from checks(TASK, spec, ("test",), files=3)
    yield start(TASK, spec)
    runtime: Any = TASK.runtime(spec)

    def fill(evaluator: Any) -> Iterator[tuple[Any, Any]]:
        rng = torch.Generator().manual_seed(0)
        logit = torch.randn(BATCH, 2, SIDE, SIDE, generator=rng)
        label = (torch.rand(BATCH, SIDE, SIDE, generator=rng) > 0.9).to(torch.uint8)
        for part in batches(rows):
            size = torch.full((len(part), 2), SIDE)
            yield {FINAL: logit[: len(part)]}, {"index": torch.tensor(part), "size": size, "L": label[: len(part)]}

    yield from Evaluated(lambda: runtime.evaluator("test", folder=folder), fill, "evaluate").works()
    yield from Evaluated(lambda: runtime.evaluator("infer", folder=folder), fill, "inference").works()


def mal(folder: Path, rows: int) -> Iterator[Work]:
    from mal.task import MAL as TASK

    boxes(folder, rows)
    file, images = str(folder / "boxes.json"), str(folder / "images")
    data = {"train_ann_path": file, "train_img_dir": images, "val_ann_path": file, "val_img_dir": images}
    data |= {"load_mask": True, "num_workers_per_gpu": 0, "crop_size": 128, "min_obj_size": 1}
    given = {"dataset": data, "inference": {"ann_path": file, "img_dir": images}}
    spec = TASK.spec_model().model_validate(given)
    yield from checks(TASK, spec, ("val",), files=1)
    yield start(TASK, spec)
    runtime: Any = TASK.runtime(spec)

    def fill(evaluator: Any) -> Iterator[tuple[Any, Any]]:
        prob = torch.zeros(BATCH, 1, 32, 32)
        prob[:, :, 8:24, 8:24] = 0.9
        for part in batches(rows):
            yield {"prob": prob[: len(part)]}, {"place": torch.tensor(part)}

    yield from Evaluated(lambda: runtime.evaluator("test", folder=folder), fill, "evaluate").works()
    yield from Evaluated(lambda: runtime.evaluator("infer", folder=folder), fill, "inference (COCO JSON)").works()


def mlrecog(folder: Path, rows: int) -> Iterator[Work]:
    from mlrecog.gallery import Gallery, GalleryCard, ModelFacts, Part
    from mlrecog.predictor import EMBEDDING
    from mlrecog.task import ML_RECOG as TASK

    classes(folder, rows)
    sides = {"reference": str(folder / "gallery"), "query": str(folder / "queries")}
    data = {"train_dataset": sides["query"], "val_dataset": sides, "workers": 0, "num_instance": 2}
    given = {"dataset": data, "train": {"batch_size": 8}, "evaluate": {"clustering": False}}
    given |= {"inference": {"input_path": sides["query"]}}
    spec = TASK.spec_model().model_validate(given)
    yield from checks(TASK, spec, ("train",), files=1)
    yield start(TASK, spec)
    runtime: Any = TASK.runtime(spec)

    def fill(evaluator: Any) -> Iterator[tuple[Any, Any]]:
        rng = torch.Generator().manual_seed(0)
        for part in batches(min(rows, GALLERY)):
            evaluator.update({EMBEDDING: torch.randn(len(part), DIM, generator=rng)}, {"place": torch.tensor(part)})
        evaluator.update = lambda outputs, batch, update=evaluator.update: update(outputs, batch, source=1)
        for part in batches(rows):
            yield {EMBEDDING: torch.randn(len(part), DIM, generator=rng)}, {"place": torch.tensor(part)}

    yield from Evaluated(lambda: runtime.evaluator("test", folder=folder), fill, "evaluate").works()
    yield from Evaluated(lambda: runtime.evaluator("infer", folder=folder), fill, "inference").works()

    def build() -> object:
        facts = ModelFacts("0" * 64, (SIDE, SIDE), (0.5,) * 3, (0.2,) * 3)
        rng = torch.Generator().manual_seed(0)
        names = [([f"class{n % CLASSES}" for n in part], [f"/p/{n}.jpg" for n in part]) for part in batches(rows)]
        parts = (Part.of(*each, torch.randn(len(each[0]), DIM, generator=rng)) for each in names)
        return Gallery.build(str(folder / "kept"), GalleryCard(facts, DIM), parts)

    yield Work("gallery build", build)
    yield Work("gallery open", lambda: Gallery.open(str(folder / "kept")))


NETWORKS: dict[str, Callable[[Path, int], Iterator[Work]]] = {
    "classify": classify,
    "segment": segment,
    "mal": mal,
    "mlrecog": mlrecog,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def prices(network: str, rows: int, folder: Path, *, cpu: bool) -> Iterator[tuple[Work, Price]]:
    """Every work of a network at one size."""
    os.environ["FIDUCIAL_CACHE"] = str(folder / "cache")
    kept.SETTLED_NS = -1  # the files are new
    for part in ("few", "all"):
        (folder / part).mkdir()
    for work in NETWORKS[network](folder / "few", FEW):  # imports, and what else is done once
        work.run()
    for work in NETWORKS[network](folder / "all", rows):
        turn: Turn = measure(work.run, time.process_time if cpu else time.perf_counter)
        yield work, Price(1e6 * turn.seconds / rows, 1e3 * max(turn.megabytes, 0.0) / rows)


def in_a_process(network: str, rows: int, *, cpu: bool) -> list[tuple[Work, Price]]:
    """The same, in a process that holds nothing yet."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", network, str(rows), folder, *(["--cpu"] if cpu else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return [(Work(name, lambda: None, limit), Price(*price)) for name, limit, price in told]


def show(network: str, by_size: dict[int, list[tuple[Work, Price]]]) -> bool:
    """Print a network's table; whether a row more costs as little as it should."""
    sizes, met = list(by_size), True
    print(f"{network}: microseconds and kB of a row, of {', '.join(f'{size:,}' for size in sizes)} rows; of one more")
    for place, (work, last) in enumerate(by_size[sizes[-1]]):
        each = [by_size[size][place][1] for size in sizes]
        more = _of_one_more(each[-2], last, *sizes[-2:])
        cells = "".join(f"{price.microseconds:9.1f} us {price.kilobytes:6.2f} kB" for price in [*each, more])
        said = ["flat" if last.microseconds <= FLAT * each[0].microseconds else "GROWS"]
        if work.limit_us is not None:
            said.append(f"at most {work.limit_us:g} us: {_met(more.microseconds <= work.limit_us)}")
        said.append(f"2 kB: {_met(more.kilobytes <= 2)}")
        met = met and not any("MISSED" in part for part in said)
        print(f"    {work.name:40}{cells}   {'; '.join(said)}", flush=True)
    return met


def _of_one_more(few: Price, many: Price, num_few: int, num_many: int) -> Price:
    rows = num_many - num_few
    microseconds = (many.microseconds * num_many - few.microseconds * num_few) / rows
    return Price(microseconds, (many.kilobytes * num_many - few.kilobytes * num_few) / rows)


def _met(good: bool) -> str:
    return "met" if good else "MISSED"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rows, the most last; two or more"
    )
    parser.add_argument("--cpu", action="store_true", help="what the process computes, not the clock's time")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.one:
        network, rows, folder = options.one
        for work, price in prices(network, int(rows), Path(folder), cpu=options.cpu):
            print(json.dumps([work.name, work.limit_us, [price.microseconds, price.kilobytes]]), flush=True)
        return 0
    print(machine(1))
    met = True
    for network in options.only.split(","):
        by_size: dict[int, list[tuple[Work, Price]]] = {}
        for size in (40, 80) if options.quick else options.sizes:
            if options.quick:
                with tempfile.TemporaryDirectory() as folder:
                    by_size[size] = list(prices(network, size, Path(folder), cpu=options.cpu))
            else:
                by_size[size] = in_a_process(network, size, cpu=options.cpu)
        met = show(network, by_size) and met
    return int(not options.quick and not met)


if __name__ == "__main__":
    sys.exit(main())
