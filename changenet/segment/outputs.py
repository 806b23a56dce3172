"""From logits to masks, metrics and files: the same code for every runtime, ``evaluate`` and ``inference``."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from changenet.difference import resize
from changenet.segment.counts import IGNORED
from changenet.segment.files import Split
from changenet.segment.geo import polygons, read_info, write_geotiff, write_polygons
from changenet.segment.image_results import ImageResult, write_image_csv
from changenet.segment.masks import (
    colour_mask,
    output_names,
    palette,
    strip,
    write_mask,
    write_picture,
    write_probability,
)
from changenet.segment.metrics import class_order, confusion, per_class, summary
from changenet.segment.objects import ObjectCounts, match_objects
from changenet.segment.rates import as_kpi
from changenet.segment.reading import TIFF, Pixels, SceneReader
from changenet.segment.report import Views, write_report
from changenet.segment.tiles import Blend, Window
from fiducial.errors import MetricError
from fiducial.run.ranks import gather

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["ImageFiles", "ImageRecord", "Predicted", "SegmentEvaluator", "write_evaluation", "write_inference"]

MASKS, PROBABILITIES, POLYGONS = "masks", "probabilities", "polygons"
STRIPS = "combined_visualisation"
"""TAO's name of the folder of picture strips."""
_LARGEST_PICTURE = 1024
_THREADS = 4
_MAX_PENDING = 16
"""Images whose files may be unwritten at a time."""
_STAGE_OF = {"Eval metrics generated.": "val_", "Train metrics generated.": "train_"}
"""Messages of a training's status records, which repeat older KPIs, and the KPIs that are new in them."""


@dataclass(frozen=True)
class Predicted:
    """The result for one image: class numbers uint8 ``(H, W)``; probabilities float32 ``(K, H, W)`` where kept; the
    true class numbers uint8 ``(H, W)`` where known."""

    index: int
    mask: Pixels
    prob: NDArray[np.float32] | None
    label: Pixels | None


@dataclass(frozen=True)
class ImageRecord:
    """What is remembered of an image once its files are written."""

    index: int
    changed_pixels: int
    pixels: int
    result: ImageResult | None
    """None in inference."""


class SegmentEvaluator:
    """Turns the logits of every batch into masks, whatever ran the model, and hands each finished image to ``take``.

    Windows of an image must come one after the other, on one rank; their probabilities are blended. ``keep_prob`` gives
    ``take`` the probabilities too. ``take`` is called in threads, so that the network need not wait for the files.
    """

    def __init__(self, num_classes: int, take: Callable[[Predicted], ImageRecord], *, keep_prob: bool = False) -> None:
        self.num_classes, self.take, self.keep_prob = num_classes, take, keep_prob
        self._pool = ThreadPoolExecutor(_THREADS)
        self._pending: deque[Future[ImageRecord]] = deque()
        self._records: list[ImageRecord] = []
        self._open: _OpenImage | None = None

    @torch.no_grad()
    def update(self, output: Tensor, batch: Mapping[str, Any]) -> None:
        """Take a batch of logits ``(B, K, S, S)``."""
        labels = batch.get("L")
        sizes = [(int(height), int(width)) for height, width in batch["size"].tolist()]
        for i, index in enumerate(batch["index"].tolist()):
            logit_KHW = output[i].float()
            label = None if labels is None else labels[i].cpu().numpy()
            if "corner" in batch:
                self._add_window(index, sizes[i], batch["corner"][i].tolist(), logit_KHW, label)
                continue
            logit_KHW = resize(logit_KHW[None], sizes[i])[0]
            mask = logit_KHW.argmax(0).to(torch.uint8).cpu().numpy()
            prob = logit_KHW.softmax(0).cpu().numpy() if self.keep_prob else None
            self._hand_over(Predicted(index, mask, prob, label))

    def finish(self) -> list[ImageRecord]:
        """The records of all ranks, in the order of the list; forgets them.

        Raises: MetricError when there are none, or when windows of an image did not come.
        """
        if self._open is not None:
            raise MetricError("evaluation", f"the windows of image {self._open.index} are not complete", "run again")
        self._wait(0)
        records = sorted((r for rank in gather(self._records) for r in rank), key=lambda r: r.index)
        self._records = []
        if not records:
            raise MetricError("evaluation", "no images were predicted", "check the list of the split")
        return records

    def _hand_over(self, image: Predicted) -> None:
        self._pending.append(self._pool.submit(self.take, image))
        self._wait(_MAX_PENDING)

    def _wait(self, num_left: int) -> None:
        """Until at most this many images are unfinished."""
        while len(self._pending) > num_left:
            self._records.append(self._pending.popleft().result())

    def _add_window(
        self, index: int, size: tuple[int, int], corner: Sequence[int], logit_KSS: Tensor, label: Pixels | None
    ) -> None:
        if self._open is None:
            self._open = _OpenImage(index, size, self.num_classes, keep_prob=self.keep_prob)
        window = Window(corner[0], corner[1], *logit_KSS.shape[-2:])
        if self._open.add(window, logit_KSS.softmax(0).cpu().numpy(), label):
            done, self._open = self._open.finish(), None
            self._hand_over(done)


class _OpenImage:
    """An image whose windows are still coming."""

    def __init__(self, index: int, size: tuple[int, int], num_classes: int, *, keep_prob: bool) -> None:
        self.index, self.size, self.keep_prob = index, size, keep_prob
        self.blend = Blend(num_classes, *size)
        self.mask_rows: list[Pixels] = []
        self.prob_rows: list[NDArray[np.float32]] = []
        self.label: Pixels | None = None

    def add(self, window: Window, prob_KSS: NDArray[np.float32], label: Pixels | None) -> bool:
        """Take a window; whether it was the last one."""
        self._rows(self.blend.add(window, prob_KSS))
        height, width = self.size
        if label is not None:
            if self.label is None:
                self.label = np.full(self.size, IGNORED, dtype=np.uint8)
            self.label[window.slices] = label[: height - window.top, : width - window.left]
        return window.top + window.height >= height and window.left + window.width >= width

    def finish(self) -> Predicted:
        self._rows(self.blend.finish())
        prob = np.concatenate(self.prob_rows, axis=1) if self.keep_prob else None
        return Predicted(self.index, np.concatenate(self.mask_rows), prob, self.label)

    def _rows(self, prob_KhW: NDArray[np.float32]) -> None:
        self.mask_rows.append(prob_KhW.argmax(0).astype(np.uint8))
        if self.keep_prob:
            self.prob_rows.append(prob_KhW)


class ImageFiles:
    """Writes the files of each image as soon as it is predicted, and measures it where its truth is known.

    ``show``: whether the image at a place of the list also gets TAO's pictures.
    """

    def __init__(
        self,
        folder: Path,
        data: SegmentDataset,
        split: Split,
        reader: SceneReader,
        *,
        show: Callable[[int], bool],
    ) -> None:
        self.folder, self.data, self.split, self.reader, self.show = folder, data, split, reader, show
        self.names = output_names(split.names)
        self.colours = palette(data.num_classes, color_map=data.color_map, data_name=data.data_name)

    def __call__(self, image: Predicted) -> ImageRecord:
        pair, outputs = self.split.pairs[image.index], self.data.outputs
        mask = image.mask
        if pair.before.suffix.lower() in TIFF:
            valid = self.reader.valid(pair)
            if valid is not None and valid.shape == mask.shape:
                mask = np.where(valid, mask, np.uint8(IGNORED))
        write_mask(self.mask_path(image.index), mask, self.colours)
        if image.prob is not None:
            write_probability(self.folder / PROBABILITIES / self.names[image.index], image.prob)
        self._write_map(image.index, mask, image.prob)
        if self.show(image.index):
            self._write_pictures(image)
        result = None
        if image.label is not None:
            objects = match_objects(
                image.mask > 0,
                (image.label > 0) & (image.label != IGNORED),
                ignored_HW=image.label == IGNORED,
                min_area=outputs.min_object_area,
            )
            mask_1HW, label_1HW = (torch.from_numpy(part[None]) for part in (image.mask, image.label))
            (matrix_KK,) = confusion(mask_1HW, label_1HW, self.data.num_classes).numpy()
            result = ImageResult(pair.name, matrix_KK, objects)
        changed = int(((mask > 0) & (mask != IGNORED)).sum())
        return ImageRecord(image.index, changed, int((mask != IGNORED).sum()), result)

    def mask_path(self, index: int) -> Path:
        """Where the mask of an image is."""
        name = self.names[index]
        return self.folder / MASKS / name.with_name(f"{name.name}.png")

    def views(self, index: int) -> Views:
        """The images of a pair at the size of its mask, and both masks, from their files."""
        with Image.open(self.mask_path(index)) as image:
            mask = np.asarray(image)
        scene = self.reader.scene(self.split.pairs[index])
        height, width = mask.shape
        before, after = (_fitted(part, (width, height)) for part in (scene.before, scene.after))
        label = scene.label if scene.label is not None else np.full(mask.shape, IGNORED, dtype=np.uint8)
        return Views(before, after, mask, _fitted(label, (width, height)))

    def _write_map(self, index: int, mask: Pixels, prob: NDArray[np.float32] | None) -> None:
        """Mask and probability as GeoTIFF, and polygons, where the image says where it lies and has the mask's size."""
        path = self.split.pairs[index].before
        if path.suffix.lower() not in TIFF:
            return
        info = read_info(path)
        if info.frame is None or (info.height, info.width) != mask.shape:
            return
        name = self.names[index]
        target = self.folder / MASKS / name.with_name(f"{name.name}.tif")
        write_geotiff(target, mask, info.frame, colours=self.colours, nodata=IGNORED)
        if prob is not None:
            changed = np.where(mask == IGNORED, np.float32(np.nan), 1 - prob[0])
            target = self.folder / PROBABILITIES / name.with_name(f"{name.name}.tif")
            write_geotiff(target, changed, info.frame, nodata=np.nan)
        kind = self.data.outputs.polygons
        if kind != "none":
            found = polygons(mask, info.frame, min_area=self.data.outputs.min_object_area, wgs84=kind == "wgs84")
            write_polygons(self.folder / POLYGONS / name.with_name(f"{name.name}.geojson"), found)

    def _write_pictures(self, image: Predicted) -> None:
        """TAO's two JPEGs: the coloured mask, and the strip of both images, the mask and, where known, the truth."""
        scene = self.reader.scene(self.split.pairs[image.index])
        masks = [colour_mask(mask, self.colours) for mask in (image.mask, image.label) if mask is not None]
        height, width = image.mask.shape
        scale = min(1.0, _LARGEST_PICTURE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pictures = [_fitted(part, size) for part in (scene.before, scene.after)]
        pictures += [_fitted(mask, size, Image.Resampling.NEAREST) for mask in masks]
        name = self.names[image.index]
        suffix = Path(self.split.names[image.index]).suffix
        file_name = name.with_name(f"{name.name.removesuffix(suffix)}{suffix}.jpg")
        write_picture(self.folder / file_name, pictures[2])
        write_picture(self.folder / STRIPS / file_name, strip(pictures))


def _fitted(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling | None = None) -> Pixels:
    """``pixels`` at ``size`` = (width, height); masks ``(H, W)`` always by their nearest pixel."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if resample is None:
        resample = Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, resample))


def write_inference(folder: Path, records: Sequence[ImageRecord], files: ImageFiles) -> Path:
    """``inference.csv``: each image, its mask, and how much of it changed."""
    path = folder / "inference.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "mask", "pixels", "changed_pixels", "changed_share"])
        for record in records:
            mask = files.mask_path(record.index).relative_to(folder).as_posix()
            share = record.changed_pixels / record.pixels if record.pixels else 0.0
            name = files.split.names[record.index]
            writer.writerow([name, mask, record.pixels, record.changed_pixels, f"{share:.6f}"])
    return path


def write_evaluation(
    folder: Path, records: Sequence[ImageRecord], files: ImageFiles, facts: Mapping[str, Any]
) -> dict[str, float]:
    """``evaluate.csv`` (one line per image), ``metrics.json`` and ``report.html``; returns the KPIs."""
    results = [record.result for record in records if record.result is not None]
    matrix = np.sum([result.confusion for result in results], axis=0)
    objects = sum((result.objects for result in results if result.objects), ObjectCounts())
    kpis = test_kpis(matrix, objects)
    write_image_csv(folder / "evaluate.csv", results)
    names = _class_names(len(matrix))
    rates = per_class(matrix)
    metrics = {
        "images": len(results),
        "confusion": matrix.tolist(),
        "classes": {
            names[k]: {name: float(values[k]) for name, values in rates.items()} for k in class_order(len(matrix))
        },
        "objects": {name: getattr(objects, name) for name in ("matched", "missed", "false", "touched", "stray")},
        "kpis": kpis,
        "run": dict(facts),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    place = [record.index for record in records if record.result is not None]
    write_report(
        folder / "report.html",
        per_image=results,
        load_views=lambda i: files.views(place[i]),
        class_names=names,
        class_colours=files.colours,
        metrics=kpis,
        curves=training_curves(Path(str(facts.get("model", ""))).parent / "status.json"),
        facts_of_run=facts,
        num_shown=files.data.outputs.num_overlays,
    )
    return kpis


def test_kpis(matrix_KK: NDArray[np.int64], objects: ObjectCounts) -> dict[str, float]:
    """Every metric under its name in logs and status.json."""
    strict = objects.rates
    found = {"recall": strict.recall, "precision": strict.precision, "f1": strict.f1}
    kpis = {f"test_{name}": value for name, value in summary(matrix_KK).items()}
    return kpis | {f"test_object_{name}": as_kpi(value) for name, value in found.items()}


test_kpis.__test__ = False  # type: ignore[attr-defined]  # no test, for test collectors


def training_curves(status_path: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Charts of the loss and of the change's IoU per epoch, from the status file of the training; empty without one."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    try:
        lines = status_path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the line of a run that was killed while writing
        stage = _STAGE_OF.get(record.get("message", "")) if isinstance(record, dict) else None
        if stage is None or "epoch" not in record:
            continue
        for name, value in (record.get("kpi") or {}).items():
            if name.startswith(stage) and isinstance(value, (int, float)):
                x, y = series.setdefault(name, ([], []))
                x.append(float(record["epoch"]))
                y.append(float(value))
    charts = {"Loss": ("train_loss", "val_loss"), "IoU of class 1": ("train_iou_1", "val_iou_1")}
    chosen = {title: {name: series[name] for name in names if name in series} for title, names in charts.items()}
    return {title: lines_of for title, lines_of in chosen.items() if lines_of}


def _class_names(num_classes: int) -> list[str]:
    return (
        ["no change", "change"] if num_classes == 2 else ["no change", *(f"class {k}" for k in range(1, num_classes))]
    )
