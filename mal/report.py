"""``report.html`` of ``inference``: the masks that need a person, worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiducial.data.images import read_rgb
from fiducial.report import Page, Picture, Tile, data_uri, gallery, note, number, table, tiles
from mal.crop import crop_around
from mal.label_formats import decoded
from mal.quality import calibration
from mal.results import Labelled, Results

__all__ = ["write_report"]

SHOWN = 60
"""Masks that are drawn."""
_SIDE = 220
_COLOUR = np.array([255, 60, 60])
_MARGIN = 0.5


def write_report(folder: Path, images: Path, results: Results, facts: Mapping[str, Any]) -> Path:
    """The page, with at most :data:`SHOWN` overlays."""
    judged = [found for found in results.labelled if found.quality is not None]
    judged.sort(key=lambda found: found.quality.score if found.quality else 0.0)
    counts = results.counts()
    page = Page("MAL labels", str(facts.get("model", "")))
    page.add("Summary", tiles([Tile(name.replace("_", " "), number(value)) for name, value in counts.items()]))
    reasons = results.selection.reasons()
    if reasons:
        page.add("Left out", table(["an annotation that", "annotations"], [[r, n] for r, n in reasons.items()]))
    measured = [found for found in judged if found.iou is not None]
    if measured:
        page.add("Is the quality to be trusted?", _calibration(measured), intro=_CALIBRATION)
    shown = [_card(images, results, found) for found in judged[:SHOWN]]
    page.add("Worst first", gallery(shown) if shown else note("no mask"), intro=_WORST)
    path = folder / "report.html"
    page.write(path)
    return path


_WORST = (
    "Quality is the geometric mean of: how well the mask fills the box, how far student and teacher agree, and how far "
    "the mask stays when the box grows a little. quality.csv has all of them."
)
_CALIBRATION = "Masks of these annotations are known: their mean IoU by quality."


def _calibration(measured: list[Labelled]) -> str:
    rows = calibration([f.quality.score for f in measured if f.quality], [f.iou or 0.0 for f in measured])
    return table(
        ["quality", "masks", "mean IoU"],
        [
            [f"{row.low:.1f} to {row.high:.1f}", row.count, None if math.isnan(row.mean_iou) else f"{row.mean_iou:.3f}"]
            for row in rows
        ],
    )


def _card(images: Path, results: Results, found: Labelled) -> Picture:
    box, quality = results.box(found), found.quality
    assert quality is not None
    picture = results.annotations.pictures[box.picture]
    known = {"box fit": quality.box_fit, "agreement": quality.agreement, "stability": quality.stability}
    said = {name: f"{value:.2f}" for name, value in known.items() if value is not None}
    if found.iou is not None:
        said["IoU"] = f"{found.iou:.2f}"
    return Picture(
        f"{results.annotations.class_names[box.category]}, annotation {box.id}",
        {name: _uri(images, results, found, drawn=name == "mask") for name in ("picture", "mask")},
        {"file": picture.file, **said},
        badge=f"{quality.score:.2f}",
    )


def _uri(images: Path, results: Results, found: Labelled, *, drawn: bool) -> str:
    box = results.box(found)
    picture = results.annotations.pictures[box.picture]
    pixels: NDArray[Any] = np.asarray(read_rgb(images / picture.file))
    crop = crop_around(box.corners, [_MARGIN] * 4).inside(picture.width, picture.height)
    window = pixels[crop.y0 : crop.y1, crop.x0 : crop.x1].astype(float)
    if drawn:
        mask = decoded(found)[crop.y0 : crop.y1, crop.x0 : crop.x1]
        window[mask] = 0.5 * window[mask] + 0.5 * _COLOUR
    return data_uri(window.astype(np.uint8), max_side=_SIDE)
