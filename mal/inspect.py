"""A look at annotated pictures before anything is built: quickly before every action, thoroughly in ``check``.

No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fiducial.data.checks import how_to_find, in_threads, spread
from fiducial.data.images import open_image
from fiducial.errors import DatasetError, Problem, UserError
from fiducial.task import DataReport, SplitFacts
from mal.annotations import looks_like_corners
from mal.splits import KEYS, Split, files_of, read_split, values_of

if TYPE_CHECKING:
    from pathlib import Path

    from mal.config import ExperimentSpec

__all__ = ["check_data"]

LOOKED_AT = 500
"""Pictures of a split that every action takes a glance at; ``check`` looks at all."""
_NAMED = 3


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
    annotations, selection, where = split.annotations, split.selection, str(split.annotations.path)
    if looks_like_corners(annotations):
        fix = "bbox is x, y, width, height in COCO: convert x0, y0, x1, y1"
        yield Problem(where, "most boxes reach beyond their picture, and would not as corners", fix)
        return
    ids = Counter(str(row.get("id")) for row in annotations.rows)
    twice = [number for number, count in ids.items() if count > 1]
    if twice:
        found = f"{len(twice)} annotation ids stand more than once (first: {', '.join(twice[:_NAMED])})"
        yield Problem(where, found, "each annotation is kept by its place; give each its own id", "warning")
    for reason, count in selection.reasons().items():
        found = f"{count} of {len(annotations.rows)} annotations: {reason}"
        yield Problem(where, found, "they are not used" if name != "infer" else "they get no mask", "warning")
    if selection.clipped:
        found = f"{selection.clipped} boxes reach beyond their picture"
        yield Problem(where, found, "they are cut to it", "warning")
    if not selection.boxes:
        yield _nothing_left(spec, split, name)
    if (name == "val" and spec.dataset.load_mask) or (name == "infer" and spec.inference.load_mask):
        yield from _check_masks(split, name, thorough=thorough)
    yield from _check_pictures(split, KEYS[name][1], thorough=thorough)


def _nothing_left(spec: ExperimentSpec, split: Split, name: str) -> Problem:
    where, total = str(split.annotations.path), len(split.annotations.rows)
    areas = [box.area for box in split.annotations.boxes]
    if name == "train" and areas and max(areas) <= spec.dataset.min_obj_size:
        found = f"all {total} boxes are at most {spec.dataset.min_obj_size:g} square pixels"
        return Problem("dataset.min_obj_size", f"{found} (median {np.median(areas):.0f})", "lower it")
    return Problem(where, f"none of its {total} annotations can be used", "see the reasons above")


def _check_masks(split: Split, name: str, *, thorough: bool) -> Iterator[Problem]:
    boxes = split.selection.boxes
    lacking = [box for box in boxes if not split.annotations.has_mask(box)]
    key = "dataset.load_mask" if name == "val" else "inference.load_mask"
    if lacking:
        found = f"true, but {len(lacking)} of {len(boxes)} annotations have no segmentation (first: {lacking[0].id})"
        yield Problem(key, found, f"set {key}=false (no mIoU), or add masks")
        return
    for box in boxes if thorough else spread(boxes, LOOKED_AT):
        try:
            split.annotations.mask(box)
        except DatasetError as error:
            yield from error.problems


def _check_pictures(split: Split, key: str, *, thorough: bool) -> Iterator[Problem]:
    stated = {split.images / picture.file: picture for picture in split.annotations.pictures}
    files = list(files_of(split))
    missing = [path for path in files if not path.is_file()]
    if missing:
        named = ", ".join(path.name for path in missing[:_NAMED])
        fix = how_to_find(
            missing[0],
            renamed="file_name must have the suffix {suffix}",
            folders=f"check file_name and {key}",
            otherwise=f"check file_name and {key}",
        )
        yield Problem(str(split.images), f"{len(missing)} of {len(files)} pictures are missing ({named})", fix)
    there = [path for path in files if path.is_file()]
    looked = there if thorough else spread(there, LOOKED_AT)

    def look(path: Path) -> list[Problem]:
        picture = stated[path]
        try:
            with open_image(path) as image:
                width, height = image.size
        except UserError as error:
            return list(error.problems)
        if (width, height) == (picture.width, picture.height):
            return []
        found = f"{width} x {height} pixels, {picture.width} x {picture.height} in the annotations"
        return [Problem(str(path), found, "annotate this version of it (a turn by EXIF is not applied)")]

    for problems in in_threads(look, looked):
        yield from problems
