"""The files of ``evaluate`` and ``inference``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.checkpoints.atomic import save_atomically
from fiducial.prediction import Kpis
from fiducial.run.console import LOGGER
from mal.annotations import Box
from mal.label_formats import WRITERS
from mal.report import write_report
from mal.results import Labelled, Results

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["labelled_tree", "write_evaluation", "write_inference"]

REASON = "mal_reason"
"""Field of an annotation without a mask: why it has none."""


def write_evaluation(
    folder: Path,
    spec: ExperimentSpec,
    results: Results,
    kpis: Kpis,
    by_class: Mapping[int, tuple[int, float]],
    facts: Mapping[str, Any],
) -> tuple[Path, ...]:
    """``metrics.json``, ``per_class_iou.csv`` and ``objects.csv``."""
    numbers = {name: _json_number(value) for name, value in kpis.items()}
    left_out = results.selection.reasons()
    metrics = folder / "metrics.json"
    _write_json(metrics, {"kpis": numbers, "left_out": left_out, "facts": dict(facts)})
    classes = folder / "per_class_iou.csv"
    categories = results.annotations.tree["categories"]
    with classes.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["category_id", "name", "n", "mean_iou"])
        for place, (count, iou) in by_class.items():
            name = results.annotations.class_names[place]
            writer.writerow([categories[place]["id"], name, count, f"{iou:.6f}"])
    objects = _write_objects(folder / "objects.csv", results)
    return metrics, classes, objects


def write_inference(
    folder: Path, spec: ExperimentSpec, images: Path, results: Results, facts: Mapping[str, Any]
) -> tuple[Path, ...]:
    """TAO's COCO file at ``inference.label_dump_path``, other formats that are asked for, ``quality.csv``, a report."""
    section = spec.inference
    target = folder / section.label_dump_path  # an absolute path stays as it is
    _write_json(target, labelled_tree(results, area=section.area))
    LOGGER.info("labels: %s", target)
    written = [target]
    for name in section.formats:
        if name in WRITERS:
            written.extend(WRITERS[name](folder, results))
    written.append(_write_objects(folder / "quality.csv", results))
    if section.quality:
        written.append(write_report(folder, images, results, facts))
        LOGGER.info("report: %s", written[-1])
    return tuple(written)


def labelled_tree(results: Results, *, area: str = "box") -> dict[str, Any]:
    """The input's own tree with a mask in every annotation that has one now, and the reason in those that have none.

    TAO-compat: ``area`` is the box's, and ``iscrowd`` 0. A clean design would count the mask's pixels: ``area="mask"``.
    """
    annotations = results.annotations
    found = {results.box(item).row: item for item in results.labelled}
    rows = [
        {**row, **_label(results.box(found[place]), found[place], area)}
        if place in found
        else {**row, REASON: results.selection.left_out.get(place, "not looked at")}
        for place, row in enumerate(annotations.rows)
    ]
    return {**annotations.tree, "annotations": rows}


def _label(box: Box, found: Labelled, area: str) -> dict[str, Any]:
    label: dict[str, Any] = {
        "segmentation": dict(found.rle),
        "iscrowd": 0,
        "area": found.mask_area if area == "mask" else box.area,
        "mask_area": found.mask_area,
    }
    if box.prompt == "point":
        x0, y0, x1, y1 = box.corners
        label["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    if found.iou is not None:
        label["iou"] = found.iou
    if found.quality is not None:
        label["quality"] = round(found.quality.score, 4)
    return label


_COLUMNS = ("annotation_id", "file_name", "category", "mask_area", "iou", "boundary_f", "quality")
_PARTS = ("box_fit", "agreement", "stability")


def _write_objects(path: Path, results: Results) -> Path:
    """One line for each annotation, those that a person should look at first."""
    annotations = results.annotations

    def order(found: Labelled) -> float:
        return found.quality.score if found.quality else -1.0 if found.iou is None else found.iou

    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *_PARTS, "reason"])
        for found in sorted(results.labelled, key=order):
            box = results.box(found)
            quality = found.quality
            parts = [None if quality is None else getattr(quality, part) for part in _PARTS]
            numbers = [found.iou, found.boundary, None if quality is None else quality.score, *parts]
            name, label = annotations.pictures[box.picture].file, annotations.class_names[box.category]
            shown = ["" if n is None else f"{n:.4f}" for n in numbers]
            writer.writerow([box.id, name, label, found.mask_area, *shown, "" if found.mask_area else "an empty mask"])
        for row, reason in results.selection.left_out.items():
            writer.writerow([annotations.rows[row].get("id", ""), *[""] * (len(_COLUMNS) + len(_PARTS) - 1), reason])
    return path


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, tree: Any) -> None:
    text = json.dumps(tree)  # in ASCII: names need not be valid Unicode
    save_atomically(path, lambda file: file.write(text.encode("ascii")))
