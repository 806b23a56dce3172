"""What sums up the images of a run: the CSV, ``metrics.json``, the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from changenet.segment.image_files import ImageFiles, ImageRecord
from changenet.segment.image_results import write_image_csv
from changenet.segment.metrics import class_order, per_class
from changenet.segment.objects import ObjectCounts
from changenet.segment.rates import as_kpi
from changenet.segment.report import write_report

__all__ = ["SegmentResults", "object_kpis", "training_curves", "write_evaluation", "write_inference"]

_STAGE_OF = {"Eval metrics generated.": "val_", "Train metrics generated.": "train_"}
"""Messages of a training's status records, which repeat older KPIs, and the KPIs that are new in them."""


@dataclass(frozen=True)
class SegmentResults:
    """The confusion matrix of all pixels, int64 ``(K, K)``, None without masks; the images whose files are written;
    the outputs of training that were no numbers."""

    matrix: NDArray[np.int64] | None
    records: Sequence[ImageRecord] = ()
    num_unsound: int = 0

    @property
    def objects(self) -> ObjectCounts:
        """The objects of all images."""
        found = (record.result.objects for record in self.records if record.result is not None)
        return sum((objects for objects in found if objects), ObjectCounts())


def write_inference(records: Sequence[ImageRecord], files: ImageFiles) -> Path:
    """``inference.csv``: each image, its mask, and how much of it changed."""
    folder = files.folder
    path = folder / "inference.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "mask", "pixels", "changed_pixels", "changed_share"])
        for record in records:
            mask = files.mask_path(record.index).relative_to(folder).as_posix()
            share = record.changed_pixels / record.pixels if record.pixels else 0.0
            name = files.split.pairs[record.index].name
            writer.writerow([name, mask, record.pixels, record.changed_pixels, f"{share:.6f}"])
    return path


def write_evaluation(
    result: SegmentResults, kpis: Mapping[str, Any], files: ImageFiles, facts: Mapping[str, Any]
) -> tuple[Path, ...]:
    """``evaluate.csv`` (one line per image), ``metrics.json`` and ``report.html``."""
    folder, matrix, objects = files.folder, result.matrix, result.objects
    assert matrix is not None  # the test set has masks
    results = [record.result for record in result.records if record.result is not None]
    facts = {**files.facts, **facts}
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
        "kpis": dict(kpis),
        "run": facts,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    place = [record.index for record in result.records if record.result is not None]
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
    return tuple(folder / name for name in ("metrics.json", "evaluate.csv", "report.html"))


def object_kpis(objects: ObjectCounts) -> dict[str, float]:
    """The metrics of objects under their names in logs and status.json."""
    strict = objects.rates
    found = {"recall": strict.recall, "precision": strict.precision, "f1": strict.f1}
    return {f"test_object_{name}": as_kpi(value) for name, value in found.items()}


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
