"""The files of ``evaluate`` and ``inference``."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.prediction import Kpis
from fiducial.report import number
from fiducial.run.console import LOGGER
from mal.coco_labels import EMPTY, write_json, write_labels
from mal.label_formats import WRITERS, label_studio
from mal.report import write_labels_report, write_masks_report
from mal.results import Labelled, Results

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["write_evaluation", "write_inference"]


def write_evaluation(
    folder: Path,
    images: Path,
    results: Results,
    kpis: Kpis,
    by_class: Mapping[int, tuple[int, float]],
    facts: Mapping[str, Any],
) -> tuple[Path, ...]:
    """``metrics.json``, ``per_class_iou.csv``, ``objects.csv`` and ``report.html``."""
    left_out = results.selection.reasons()
    metrics = folder / "metrics.json"
    write_json(metrics, {"kpis": dict(kpis), "left_out": left_out, "facts": dict(facts)})
    classes = folder / "per_class_iou.csv"
    categories = results.annotations.tree["categories"]
    with classes.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["category_id", "name", "n", "mean_iou"])
        for place, (count, iou) in by_class.items():
            name = results.annotations.class_names[place]
            writer.writerow([categories[place]["id"], name, count, f"{iou:.6f}"])
    objects = _write_objects(folder / "objects.csv", results)
    report = write_masks_report(folder / "report.html", images, results, kpis, facts)
    LOGGER.info("%s", _in_a_line(kpis))
    LOGGER.info("report: %s", report)
    return metrics, classes, objects, report


def write_inference(
    folder: Path, spec: ExperimentSpec, images: Path, results: Results, kpis: Kpis, facts: Mapping[str, Any]
) -> tuple[Path, ...]:
    """TAO's COCO file at ``inference.label_dump_path``, other formats that are asked for, ``quality.csv``, a report."""
    section = spec.inference
    target = folder / section.label_dump_path  # an absolute path stays as it is
    write_labels(target, results, area=section.area)
    LOGGER.info("%s", _in_a_line(kpis))
    LOGGER.info("labels: %s", target)
    written = [target]
    for name in section.formats:
        if name == "label_studio":
            written.extend(label_studio(folder, results, section.label_studio_images))
        elif name in WRITERS:
            written.extend(WRITERS[name](folder, results))
    written.append(_write_objects(folder / "quality.csv", results))
    if section.quality:
        written.append(write_labels_report(folder / "report.html", images, results, facts))
        LOGGER.info("report: %s", written[-1])
    return tuple(written)


def _in_a_line(kpis: Kpis) -> str:
    known = {name: value for name, value in kpis.items() if isinstance(value, float) and math.isfinite(value)}
    return ", ".join(f"{name} {number(value)}" for name, value in known.items())


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
            writer.writerow([box.id, name, label, found.mask_area, *shown, "" if found.mask_area else EMPTY])
        files = {picture.id: picture.file for picture in annotations.pictures}
        labels = dict(zip((c["id"] for c in annotations.tree["categories"]), annotations.class_names, strict=True))
        for place, reason in results.selection.left_out.items():
            row = annotations.rows[place]
            known = [_known(files, row.get("image_id")), _known(labels, row.get("category_id"))]
            writer.writerow([row.get("id", ""), *known, *[""] * (len(_COLUMNS) + len(_PARTS) - 3), reason])
    return path


def _known(names: Mapping[Any, str], key: Any) -> str:
    """The name of an id, which in a file may be anything."""
    return names.get(key, "") if isinstance(key, (int, float, str)) else ""
