"""``report.html`` of ``inference`` and ``evaluate``: the masks that need a person, worst first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiducial.data.images import read_pixels
from fiducial.errors import UserError
from fiducial.prediction import Kpis
from fiducial.report import (
    Html,
    Page,
    Picture,
    Tile,
    columns,
    data_uri,
    facts,
    gallery,
    histogram,
    note,
    number,
    table,
    tiles,
)
from mal.label_formats import decoded
from mal.quality import calibration
from mal.results import Labelled, Results
from mal.views import SIDE, View, close_up, whereabouts

__all__ = ["write_labels_report", "write_masks_report"]

SHOWN = 60
"""Masks that are drawn."""
_BINS = 20
_SHOWN = ("mIoU", "mIoU_small", "mIoU_medium", "mIoU_large", "object_IoU", "boundary_F", "AP_segm")
"""Numbers of an evaluation that are shown large; all are listed at the end."""


def write_labels_report(path: Path, images: Path, results: Results, about: Mapping[str, Any]) -> Path:
    """The page of ``inference``: how good the masks seem to be, and those to look at."""
    judged = _worst_first(results.labelled, _quality)
    page = Page("MAL labels", str(about.get("model", "")))
    shown = [Tile(name.replace("_", " "), number(value)) for name, value in results.counts().items()]
    qualities = [_quality(found) for found in judged]
    if qualities:
        shown.append(Tile("mean quality", f"{np.mean(qualities):.2f}"))
    page.add("Summary", tiles(shown))
    _add_left_out(page, results)
    if qualities:
        page.add("Quality", columns(_spread("quality", qualities), _by_class(results, judged, "quality", _quality)))
    measured = [found for found in judged if found.iou is not None]
    if measured:
        page.add("Is the quality to be trusted?", _calibration(measured), intro=_CALIBRATION)
    _add_worst(page, images, results, judged, _QUALITY)
    page.add("Run", facts(about))
    page.write(path)
    return path


def write_masks_report(path: Path, images: Path, results: Results, kpis: Kpis, about: Mapping[str, Any]) -> Path:
    """The page of ``evaluate``: numbers, classes, and the masks that are farthest from the true ones."""
    measured = _worst_first(results.measured, _iou)
    known = {name: value for name, value in kpis.items() if isinstance(value, float) and not math.isnan(value)}
    page = Page("MAL masks", str(about.get("model", "")))
    shown = [
        Tile("objects", number(len(measured))),
        *(Tile(name, number(known[name])) for name in _SHOWN if name in known),
    ]
    page.add("Summary", tiles(shown))
    _add_left_out(page, results)
    if measured:
        ious = [_iou(found) for found in measured]
        page.add("IoU of the objects", columns(_spread("IoU", ious), _by_class(results, measured, "IoU", _iou)))
    _add_worst(page, images, results, measured, _IOU)
    page.add("Run", columns(facts(about), facts(known)))
    page.write(path)
    return path


_QUALITY = (
    "Quality is the geometric mean of: how well the mask fills the box, how far student and teacher agree, and how far "
    "the mask stays when the box grows a little. quality.csv has all of them. The box that was asked for is blue."
)
_IOU = "What the mask and the true one have in common, of what they cover together. objects.csv has all of them."
_CALIBRATION = "Masks of these annotations are known: their mean IoU by quality."


def _quality(found: Labelled) -> float:
    return found.quality.score if found.quality else math.nan


def _iou(found: Labelled) -> float:
    return math.nan if found.iou is None else found.iou


def _worst_first(labelled: Sequence[Labelled], value: Callable[[Labelled], float]) -> list[Labelled]:
    return sorted((found for found in labelled if not math.isnan(value(found))), key=value)


def _add_left_out(page: Page, results: Results) -> None:
    reasons = results.selection.reasons()
    if reasons:
        page.add("Left out", table(["reason", "annotations"], [[r, n] for r, n in reasons.items()]))


def _spread(name: str, values: Sequence[float]) -> Html:
    return histogram("", {name: values}, bins=_BINS, x_label=name, y_label="% of the masks")


def _by_class(results: Results, labelled: list[Labelled], name: str, value: Callable[[Labelled], float]) -> Html:
    groups: dict[int, list[Labelled]] = {}
    for found in labelled:
        groups.setdefault(results.box(found).category, []).append(found)
    rows: list[Sequence[str | float]] = [
        [
            results.annotations.class_names[place],
            len(group),
            sum(not found.mask_area for found in group),
            float(np.mean([value(found) for found in group])),
        ]
        for place, group in sorted(groups.items())
    ]
    return table(["class", "masks", "empty", f"mean {name}"], rows, sortable=True)


def _calibration(measured: list[Labelled]) -> Html:
    rows = calibration([_quality(found) for found in measured], [_iou(found) for found in measured])
    return table(
        ["quality", "masks", "mean IoU"],
        [[f"{row.low:.1f} to {row.high:.1f}", row.count, row.mean_iou] for row in rows],
    )


def _add_worst(page: Page, images: Path, results: Results, ordered: list[Labelled], intro: str) -> None:
    cards = [_card(images, results, found) for found in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        intro = f"The worst {SHOWN} of {number(len(ordered))}. {intro}"
    page.add("Worst first", gallery(cards) if cards else note("no mask"), intro=intro)


def _card(images: Path, results: Results, found: Labelled) -> Picture:
    box, quality = results.box(found), found.quality
    picture = results.annotations.pictures[box.picture]
    known = {"IoU": found.iou, "boundary F": found.boundary}
    if quality is not None:
        known |= {"box fit": quality.box_fit, "agreement": quality.agreement, "stability": quality.stability}
    said = {name: f"{value:.2f}" for name, value in known.items() if value is not None}
    badge = _quality(found) if quality is not None else _iou(found)
    try:
        views, problem = _views(images, results, found), ""
    except UserError as error:  # the picture was there when it was looked at
        views, problem = {}, str(error)
    return Picture(
        f"{results.annotations.class_names[box.category]}, annotation {box.id}",
        {name: data_uri(view, max_side=SIDE) for name, view in views.items()},
        {"file": picture.file, **({} if found.mask_area else {"mask": "empty"}), **said},
        badge=f"{badge:.2f}",
        problem=problem,
    )


def _views(images: Path, results: Results, found: Labelled) -> dict[str, Any]:
    """Close up: the object, its mask, and the true one where it was compared, else where the object is."""
    box = results.box(found)
    picture = results.annotations.pictures[box.picture]
    pixels = read_pixels(images / picture.file)
    view = View.around(box.corners, picture.width, picture.height)
    views = {
        "in the box": close_up(pixels, view, box.corners),
        "mask": close_up(pixels, view, box.corners, decoded(found)),
    }
    if found.iou is not None:
        true = results.annotations.mask(box) != 0
        return views | {"true mask": close_up(pixels, view, box.corners, true)}
    return views | {"where it is": whereabouts(pixels, box.corners)}
