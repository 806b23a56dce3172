"""What MAL costs, beside the straightforward way of computing the same, in one run.

    python scripts/bench/mal_parts.py [--only abcd] [--turns 3] [--threads 2] [--quick]
    python scripts/bench/mal_parts.py --threads 1 --cpu-time      # on a machine that others use too

(a) the mean field of a training batch; the straightforward way unfolds the neighbours of every pixel;
(b) peak memory of a training step; the straightforward way records a graph for the teacher, too;
(c) the loader; the straightforward way decodes the picture for every box, and draws the box's mask as large as it;
(d) masks for the boxes of one picture; the straightforward way runs the network once for each box,
    with torch's linear layers; what batches alone bring is printed, too.

Both ways must give the same before anything is timed. Seconds are medians of runs in turns (plain, ours, plain, …), the
ratio that of neighbouring turns. The memory of (b) is what torch allocates: the most that a step holds beyond what was
there before it, the weights of both networks. The exit code is 1 when a target is missed: 10 times as fast, less
memory, 3 times and 1.5 times as fast.

Part e, real photographs, is a program of its own: mal_photos.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # runs from a checkout, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measure import Meter, Way, compare, machine, measure, megabytes_of_tensors  # noqa: E402
from PIL import Image  # noqa: E402
from plain import unfolded_field  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from fiducial.data.images import read_rgb  # noqa: E402
from fiducial.data.samplers import Draw  # noqa: E402
from fiducial.ops.linear import Linear  # noqa: E402
from mal.annotations import Box, Rules, read_annotations, select  # noqa: E402
from mal.api import Labeler, LabelledBox  # noqa: E402
from mal.augment import BoxAugment  # noqa: E402
from mal.config import ExperimentSpec  # noqa: E402
from mal.crop import Corners, Crop, stretched  # noqa: E402
from mal.data import BoxDataset, BoxReader, PooledBatches  # noqa: E402
from mal.mean_field import MeanField  # noqa: E402
from mal.model import build_labeler  # noqa: E402
from mal.predictor import BoxPredictor  # noqa: E402
from mal.task import MAL  # noqa: E402
from mal.training import Objective  # noqa: E402

FIELD, LOADER, INFERENCE = 10.0, 3.0, 1.5
"""At least so many times as fast."""
SAME_PIXELS = 1e-4
"""Share of the pixels of masks that may differ by rounding: those whose probability is the threshold's."""
MARGIN = 0.3
THRESHOLD = 0.5


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    field: tuple[int, int] = (3, 128)  # pictures, and their side
    arch: str = "vit-mae-base/16"
    crop: int = 512
    photos: tuple[tuple[int, int], ...] = ((1920, 1080), (3840, 2160))
    pictures: int = 2
    boxes: int = 30
    batch: int = 3
    inference: tuple[tuple[str, int], ...] = (("vit-deit-small/16", 224), ("vit-deit-small/16", 512))


QUICK = Scale((2, 32), "vit-deit-tiny/16", 96, ((96, 64),), 2, 3, 2, (("vit-deit-tiny/16", 32),))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what ``--only`` names; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="abcd", help="letters of the parts to run")
    parser.add_argument("--turns", type=int, default=3, help="times that each way is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on the CPU")
    parser.add_argument("--workers", type=int, default=0, help="loader processes, in part c")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, for use with --threads 1")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says whether it runs, not how fast")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    scale, turns = (QUICK, 1) if options.quick else (Scale(), options.turns)
    meter = partial(measure, clock=time.process_time if options.cpu_time else time.perf_counter)
    print(machine(options.threads) + ("; CPU time" if options.cpu_time else ""))
    parts: dict[str, Callable[[Path], Iterator[bool]]] = {
        "a": lambda data: mean_field(scale, 3 * turns, meter),
        "b": lambda data: training_memory(scale),
        "c": lambda data: loading(data, scale, turns, meter, options.workers),
        "d": lambda data: labelling(data, scale, turns, meter),
    }
    with tempfile.TemporaryDirectory() as folder:
        for photo in scale.photos:
            draw_data(data_of(Path(folder), photo), photo, scale)
        met = [good for letter in parts if letter in options.only for good in parts[letter](Path(folder))]
    return int(not options.quick and not all(met))


# --- (a) -------------------------------------------------------------------------------------------------------------


def field_inputs(count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of soft blobs with some noise, probabilities, and boxes of a crop with an average margin."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, side // 8, side // 8, generator=generator)
    image = F.interpolate(coarse, size=side, mode="bicubic") + 0.05 * torch.randn(
        count, 3, side, side, generator=generator
    )
    prob = torch.rand(count, side // 4, side // 4, generator=generator)
    box = torch.zeros(count, side, side)
    edge = round(side * 0.115)  # of a box that is expanded by 0.3 of its side
    box[:, edge : side - edge, edge : side - edge] = 1
    return image, F.interpolate(prob[:, None], size=side, mode="bilinear")[:, 0], box


@torch.no_grad()
def mean_field(scale: Scale, turns: int, meter: Meter) -> Iterator[bool]:
    """One batch of a training step at default settings."""
    field, inputs = MeanField(), [tensor.to(device()) for tensor in field_inputs(*scale.field)]
    expected, found = unfolded_field(field, *inputs), field(*inputs)
    if not torch.equal(expected, found):
        raise AssertionError(f"{int((expected != found).sum())} pixels differ")
    count, side = scale.field
    print(f"(a) mean field: {count} pictures of {side} x {side}, {field.num_iter} iterations; equal masks")
    baseline = Way("neighbours unfolded", lambda: unfolded_field(field, *inputs))
    yield compare(baseline, Way("this project's", lambda: field(*inputs)), turns=turns, target=FIELD, meter=meter).met


# --- (b) -------------------------------------------------------------------------------------------------------------

STEPS = ("teacher recorded", "teacher without graph")


def memory_of(scale: Scale, way: str) -> dict[str, float]:
    """Peak ``megabytes`` of a training step beyond what is there before it, and its ``loss``."""
    torch.manual_seed(0)
    student, teacher = (build_labeler(scale.arch).to(device()) for _ in range(2))
    image, clean = torch.randn(2, 1, 3, scale.crop, scale.crop, device=device())
    box = torch.zeros(1, 1, scale.crop, scale.crop, device=device())
    box[..., scale.crop // 8 : -scale.crop // 8, scale.crop // 8 : -scale.crop // 8] = 1
    area, objective = torch.tensor([20000.0], device=device()), Objective()
    teacher.eval().requires_grad_(way == STEPS[0])

    def step() -> Tensor:
        student.zero_grad()
        logits = student(image, area)
        with nullcontext() if way == STEPS[0] else torch.no_grad():
            taught = teacher(clean, area)
        loss = objective(logits, taught, clean, box, epoch=1, step=0).total
        loss.backward()
        return loss.detach()

    step()
    return {"megabytes": megabytes_of_tensors(step), "loss": float(step())}


def training_memory(scale: Scale) -> Iterator[bool]:
    """A step of both ways."""
    print(f"(b) peak memory of a training step: {scale.arch}, one crop of {scale.crop}; equal losses")
    plain, ours = (memory_of(scale, way) for way in STEPS)
    if abs(plain["loss"] - ours["loss"]) > 1e-5 * abs(plain["loss"]):
        raise AssertionError(f"the losses are {plain['loss']} and {ours['loss']}")
    less = 1 - ours["megabytes"] / plain["megabytes"]
    print(f"    {STEPS[0]:44} {plain['megabytes']:8.0f} MB")
    print(f"    {STEPS[1]:44} {ours['megabytes']:8.0f} MB   {less:.0%} less", end="")
    print(f"  (target less: {'met' if less > 0 else 'MISSED'})", flush=True)
    yield less > 0


# --- (c) -------------------------------------------------------------------------------------------------------------


def data_of(folder: Path, photo: tuple[int, int]) -> Path:
    """Where the pictures of a size are."""
    return folder / f"{photo[0]}x{photo[1]}"


def draw_data(folder: Path, photo: tuple[int, int], scale: Scale) -> None:
    """JPEG pictures, mosaics of scikit-image's photographs as they are, with boxes all over them; ``ann.json``."""
    from skimage import data as skimage_data

    rng = np.random.default_rng(0)
    photos = [getattr(skimage_data, name)() for name in ("coffee", "astronaut", "rocket", "chelsea")]
    width, height = photo
    folder.mkdir(parents=True)
    images, rows = [], []
    for number in range(scale.pictures):
        mosaic = Image.new("RGB", photo)
        for place, corner in enumerate((x, y) for y in range(0, height, 300) for x in range(0, width, 400)):
            mosaic.paste(Image.fromarray(photos[(number + place) % len(photos)][:300, :400]), corner)
        mosaic.save(folder / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for _ in range(scale.boxes):
            w, h = rng.uniform(0.05, 0.25, 2) * (width, height)
            box = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
            rows.append({"id": len(rows), "image_id": number, "category_id": 0, "bbox": box, "iscrowd": 0})
    tree = {"images": images, "annotations": rows, "categories": [{"id": 0, "name": "thing"}]}
    (folder / "ann.json").write_text(json.dumps(tree), encoding="utf-8")


class WholePictures(BoxReader):
    """The straightforward way: for every box the picture is decoded, and a mask of all of it drawn."""

    def cut(self, box: Box, crop: Crop, *, wrapped: bool) -> tuple[np.ndarray, np.ndarray]:
        with Image.open(self.images / self.annotations.pictures[box.picture].file) as image:
            pixels = np.asarray(image.convert("RGB"), np.float64)
        mask = np.zeros(pixels.shape[:2])
        x0, y0, x1, y1 = (int(corner) for corner in box.corners)
        mask[y0 : y1 + 1, x0 : x1 + 1] = 1
        parts = copied(pixels, crop, wrapped=True), copied(mask, crop, wrapped=wrapped)
        return stretched(parts[0].astype(np.uint8), self.crop_size), stretched(
            parts[1].astype(np.uint8), self.crop_size
        )


def copied(source: np.ndarray, crop: Crop, *, wrapped: bool) -> np.ndarray:
    """A crop of an array ``(H, W, …)``, put together from the nine pictures around and in the picture.

    What is beyond the edges is seen again from the opposite one, or 0 if not ``wrapped``.
    """
    height, width = source.shape[:2]
    out = np.zeros((crop.height, crop.width, *source.shape[2:]))
    steps = (-1, 0, 1) if wrapped else (0,)
    for top, left in ((a * height, b * width) for a in steps for b in steps):
        y0, y1 = max(crop.y0, top), min(crop.y1, top + height)
        x0, x1 = max(crop.x0, left), min(crop.x1, left + width)
        if y0 < y1 and x0 < x1:
            out[y0 - crop.y0 : y1 - crop.y0, x0 - crop.x0 : x1 - crop.x0] = source[
                y0 - top : y1 - top, x0 - left : x1 - left
            ]
    return out


def dataset_of(kind: type[BoxReader], data: Path, scale: Scale, *, training: bool) -> BoxDataset:
    """The boxes of :func:`draw_data`, to label or to train on."""
    annotations = read_annotations(data / "ann.json")
    reader = kind(annotations, data, crop_size=scale.crop, margin=MARGIN)
    boxes = select(annotations, Rules()).boxes
    return BoxDataset(reader, boxes, augment=BoxAugment() if training else None)


def loading(folder: Path, scale: Scale, turns: int, meter: Meter, workers: int) -> Iterator[bool]:
    """All boxes once, to label and, with changed colours, to train on."""
    for photo, training in ((photo, training) for photo in scale.photos for training in (False, True)):
        make = partial(dataset_of, data=data_of(folder, photo), scale=scale, training=training)
        check_items(make(WholePictures), make(BoxReader))
        sized = f"{scale.pictures} pictures of {photo[0]} x {photo[1]}, {scale.boxes} boxes each, crops of {scale.crop}"
        print(f"(c) loader to {'train' if training else 'label'}, {workers} workers: {sized}; equal items")
        # each turn makes a loader: pictures that an earlier one has decoded do not count
        yield compare(
            Way(
                "picture decoded for each box, whole mask",
                lambda make=make: load_all(make(WholePictures), scale, workers),
            ),
            Way("this project's", lambda make=make: load_all(make(BoxReader), scale, workers)),
            turns=turns,
            target=LOADER,
            meter=meter,
        ).met


def check_items(plain: BoxDataset, ours: BoxDataset) -> None:
    """Raises: AssertionError unless items are equal; of some eight of them, in an epoch."""
    for index in range(0, len(ours), max(1, len(ours) // 8)):
        expected, found = plain[Draw(1, index)], ours[Draw(1, index)]
        if not all(torch.equal(value, found[name]) for name, value in expected.items()):
            raise AssertionError(f"item {index} differs")


def load_all(dataset: BoxDataset, scale: Scale, workers: int) -> None:
    """Every batch of an epoch, in training's order."""
    batches = PooledBatches([box.picture for box in dataset.boxes], batch_size=scale.batch, seed=0)
    for _ in DataLoader(dataset, batch_sampler=batches, num_workers=workers):
        pass


# --- (d) -------------------------------------------------------------------------------------------------------------


def labeler_of(arch: str, crop: int) -> Labeler:
    """An untrained one whose masks are neither empty nor their boxes."""
    torch.manual_seed(0)
    spec = ExperimentSpec.model_validate(
        {
            "model": {"arch": arch, "teacher_init": "student"},
            "dataset": {"crop_size": crop},
            "train": {"mask_thres": [THRESHOLD]},
        }
    )
    runtime = MAL.runtime(spec)
    predictor = BoxPredictor(runtime.network())
    predictor.module.to(device())
    return Labeler(runtime, predictor)


def one_by_one(labeler: Labeler, pixels: np.ndarray, boxes: Sequence[Corners]) -> list[LabelledBox]:
    """A forward pass for each box."""
    return [labeler.label(pixels, [box])[0] for box in boxes]


def one_by_one_plainly(labeler: Labeler, pixels: np.ndarray, boxes: Sequence[Corners]) -> list[LabelledBox]:
    """The same, with torch's own linear layers, as the network is usually written."""
    with mock.patch.object(Linear, "forward", nn.Linear.forward):
        return one_by_one(labeler, pixels, boxes)


def labelling(folder: Path, scale: Scale, turns: int, meter: Meter) -> Iterator[bool]:
    """Masks for all boxes of one decoded picture."""
    data = data_of(folder, scale.photos[0])
    annotations = read_annotations(data / "ann.json")
    boxes = [box.corners for box in annotations.boxes if box.picture == 0]
    pixels = np.asarray(read_rgb(data / annotations.pictures[0].file))
    for arch, crop in scale.inference:
        labeler = labeler_of(arch, crop)
        expected = [found.mask for found in one_by_one_plainly(labeler, pixels, boxes)]
        for found in (labeler.label(pixels, boxes), one_by_one(labeler, pixels, boxes)):
            differing = sum(int((a != b.mask).sum()) for a, b in zip(expected, found, strict=True))
            if differing > SAME_PIXELS * sum(map(np.sum, expected)):
                raise AssertionError(f"{differing} pixels of masks differ")
        print(f"(d) masks of {len(boxes)} boxes of one picture: {arch}, crops of {crop}; equal masks")
        ours = Way("this project's: batches", partial(labeler.label, pixels, boxes))
        plain = Way("a forward pass per box, torch's layers", partial(one_by_one_plainly, labeler, pixels, boxes))
        yield compare(plain, ours, turns=turns, target=INFERENCE, meter=meter).met
        same = Way("a forward pass per box, this project's layers", partial(one_by_one, labeler, pixels, boxes))
        yield compare(same, ours, turns=turns, meter=meter).met


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
