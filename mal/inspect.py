"""A look at annotated pictures before anything is built: quickly before every action, thoroughly in ``check``.

No torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fiducial.data.checks import how_to_find, spread
from fiducial.data.listing import not_files
from fiducial.data.looks import GLANCE, Wrong, look_at
from fiducial.errors import DatasetError, Problem, UserError, one_line
from fiducial.task import DataReport, SplitFacts
from mal.annotations import Annotations, Picture
from mal.splits import KEYS, Split, pictures_of, read_split, values_of

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["check_data", "looks_like_corners", "looks_like_shares"]

LOOKED_AT = 500
"""Pictures of a split that every action takes a glance at; ``check`` looks at all."""
_NAMED = 3
_MOST = 0.5
"""Share of boxes above which what is odd about them is taken for the file's."""
_ONE = 1.01
"""The far edge of a picture in shares of it, rounding included."""


def check_data(spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
    """Look at some splits; problems of every one are collected."""
    report = DataReport()
    for name in splits:
        if name == "val" and "train" in splits and not any(values_of(spec, name)):
            report.problems.append(
                Problem("dataset.val_ann_path", "not set", "training runs without validation", "warning")
            )
            continue
        try:
            split = read_split(spec, name)
        except UserError as error:
            report.problems.extend(error.problems)
            continue
        report.facts[name] = _facts(split)
        report.problems.extend(_check(spec, split, name, thorough=thorough))
    return report


def _facts(split: Split) -> SplitFacts:
    annotations, selection = split.annotations, split.selection
    classes = Counter(annotations.class_names[box.category] for box in selection.boxes)
    details = {
        "annotations": str(annotations.path),
        "images": str(split.images),
        "clipped": selection.clipped,
        "left out": selection.reasons(),
    }
    return SplitFacts(len(selection.boxes), "boxes", labels=dict(classes.most_common()), details=details)


def _check(spec: ExperimentSpec, split: Split, name: str, *, thorough: bool) -> Iterator[Problem]:
    yield from _check_boxes(spec, split, name)
    if (name == "val" and spec.dataset.load_mask) or (name == "infer" and spec.inference.load_mask):
        yield from _check_masks(split, name)
    yield from _check_pictures(split, KEYS[name][1], thorough=thorough)


def _check_boxes(spec: ExperimentSpec, split: Split, name: str) -> Iterator[Problem]:
    annotations, selection, where = split.annotations, split.selection, str(split.annotations.path)
    ids = [row.get("id") for row in annotations.rows]
    twice = [number for number, count in Counter(map(str, ids)).items() if count > 1]
    if twice:
        found = f"{len(twice)} annotation ids stand more than once (first: {_first(twice)})"
        yield Problem(where, found, "each annotation is kept by its place; give each its own id", "warning")
    if looks_like_corners(annotations):
        found = f"most boxes reach beyond their picture, and would not as corners (first: {_first(ids)})"
        yield Problem(where, found, "bbox is x, y, width, height in COCO: convert x0, y0, x1, y1")
        return
    if looks_like_shares(annotations):
        found = f"most boxes lie within the first pixel: shares of the picture, 0 to 1 (first: {_first(ids)})"
        yield Problem(where, found, "bbox is in pixels in COCO: multiply by the picture's width and height")
        return
    rows: dict[str, list[int]] = {}
    for row, reason in selection.left_out.items():
        rows.setdefault(reason, []).append(row)
    for reason, places in rows.items():
        found = f"{len(places)} of {len(ids)} annotations: {reason} (first: {_first([ids[row] for row in places])})"
        yield Problem(where, found, "they are not used" if name != "infer" else "they get no mask", "warning")
    if selection.clipped:
        found = f"{selection.clipped} of {len(ids)} boxes reach beyond their picture"
        yield Problem(where, found, "they are cut to it", "warning")
    if not selection.boxes:
        yield _nothing_left(spec, split, name)


def looks_like_shares(annotations: Annotations) -> bool:
    """Whether the boxes are told as shares of their picture, 0 to 1, and not in pixels: most end within 1."""
    boxes = [box for box in annotations.boxes if box.prompt == "box"]
    within = sum(max(box.corners) <= _ONE and min(box.corners) >= 1 - _ONE for box in boxes)
    return bool(boxes) and within / len(boxes) > _MOST


def looks_like_corners(annotations: Annotations) -> bool:
    """Whether most boxes would fit their picture as ``x0, y0, x1, y1`` and do not as ``x, y, width, height``."""
    boxes = [box for box in annotations.boxes if box.prompt == "box"]
    out = 0
    for box in boxes:
        picture, (x, y, right, bottom) = annotations.pictures[box.picture], box.corners
        beyond = right > picture.width + 1 or bottom > picture.height + 1
        out += beyond and x < right - x <= picture.width and y < bottom - y <= picture.height
    return bool(boxes) and out / len(boxes) > _MOST


def _first(ids: Sequence[object]) -> str:
    return ", ".join(one_line(number, 40) for number in ids[:_NAMED])


def _nothing_left(spec: ExperimentSpec, split: Split, name: str) -> Problem:
    where, total = str(split.annotations.path), len(split.annotations.rows)
    if not total:
        return Problem(where, "no annotations", "give annotations with boxes")
    areas = [box.area for box in split.annotations.boxes]
    if name == "train" and areas and max(areas) <= spec.dataset.min_obj_size:
        found = f"all {total} boxes are at most {spec.dataset.min_obj_size:g} square pixels"
        return Problem("dataset.min_obj_size", f"{found} (median {np.median(areas):.0f})", "lower it")
    return Problem(where, f"none of its {total} annotations can be used", "see the reasons beside this")


def _check_masks(split: Split, name: str) -> Iterator[Problem]:
    boxes = split.selection.boxes
    lacking = [box for box in boxes if not split.annotations.has_mask(box)]
    key = "dataset.load_mask" if name == "val" else "inference.load_mask"
    if lacking:
        found = f"true, but {len(lacking)} of {len(boxes)} annotations have no segmentation (first: {lacking[0].id})"
        yield Problem(key, found, f"set {key}=false (no mIoU), or add masks")
        return
    for box in boxes:
        try:
            split.annotations.check_mask(box)
        except DatasetError as error:
            yield from error.problems


def _check_pictures(split: Split, key: str, *, thorough: bool) -> Iterator[Problem]:
    where, hint = str(split.annotations.path), f"check file_name and {key}"
    pictures = pictures_of(split)

    def path_of(picture: Picture) -> str:
        return os.path.join(split.images, picture.file)

    gone = not_files(map(path_of, pictures))
    for picture in pictures if gone else ():
        if path_of(picture) in gone:
            path = split.images / picture.file
            found = f"no picture {path} ({len(gone)} of {len(pictures)} are missing)"
            fix = how_to_find(path, renamed="file_name must have the suffix {suffix}", folders=hint, otherwise=hint)
            yield Problem(where, found, fix)
    there = [picture for picture in pictures if path_of(picture) not in gone] if gone else pictures
    looked_at = there if thorough else spread(there, LOOKED_AT)
    for picture, glance in zip(looked_at, look_at(GLANCE, [path_of(each) for each in looked_at]), strict=True):
        if isinstance(glance, Wrong):
            yield from glance.problems
            continue
        width, height = glance.size
        if (width, height) != (picture.width, picture.height):
            found = f"{width} x {height} pixels, {picture.width} x {picture.height} in the annotations"
            turned = (height, width) == (picture.width, picture.height)
            as_is = "annotate this version of it"
            fix = "turn the pixels or the boxes: a turn by EXIF is not applied" if turned else as_is
            yield Problem(str(split.images / picture.file), found, fix)
