"""The COCO file that comes out: the one that went in, with masks."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fiducial.checkpoints.atomic import save_atomically
from mal.annotations import Box
from mal.results import Labelled, Results

__all__ = ["EMPTY", "REASON", "labelled_rows", "write_json", "write_labels"]

REASON = "mal_reason"
"""Field of an annotation without a mask: why it has none."""
EMPTY = "the model found no pixel of it"
"""The reason of an empty mask."""


def _as_found(found: Labelled) -> Any:
    return dict(found.rle)


def labelled_rows(
    results: Results, *, area: str = "box", segmentation: Callable[[Labelled], Any] = _as_found
) -> Iterator[dict[str, Any]]:
    """The input's own annotations with a mask in every one that has one now, and the reason in those that have none.

    ``segmentation``: a mask as it is written; by default run lengths.

    TAO-compat: ``area`` is the box's, and ``iscrowd`` 0. A clean design would count the mask's pixels: ``area="mask"``.
    """
    annotations = results.annotations
    found = {results.box(item).row: item for item in results.labelled}
    for place, row in enumerate(annotations.rows):
        if place in found:
            item = found[place]
            yield {**row, **_label(results.box(item), item, area), "segmentation": segmentation(item)}
        else:
            yield {**row, REASON: results.selection.left_out.get(place, "not looked at")}


def write_labels(
    path: Path, results: Results, *, area: str = "box", segmentation: Callable[[Labelled], Any] = _as_found
) -> None:
    """The input's own tree with :func:`labelled_rows`, of which one at a time is in memory; see :func:`write_json`."""

    def write(file: IO[bytes]) -> None:
        for place, (name, value) in enumerate(results.annotations.tree.items()):
            file.write(f"{', ' if place else '{'}{json.dumps(name)}: ".encode("ascii"))
            if name != "annotations":
                file.write(_text(value))
                continue
            for number, row in enumerate(labelled_rows(results, area=area, segmentation=segmentation)):
                file.write((b", " if number else b"[") + _text(row))
            file.write(b"]" if results.annotations.rows else b"[]")
        file.write(b"}")

    save_atomically(path, write)


def _label(box: Box, found: Labelled, area: str) -> dict[str, Any]:
    label: dict[str, Any] = {
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
    if not found.mask_area:
        label[REASON] = EMPTY
    return label


def write_json(path: Path, tree: Any) -> None:
    """In ASCII, as names need not be valid Unicode; numbers that are none, which JSON does not have, are null."""
    save_atomically(path, lambda file: file.write(_text(tree)))


def _text(tree: Any) -> bytes:
    try:
        text = json.dumps(tree, allow_nan=False, default=_listed)
    except ValueError:
        text = json.dumps(_finite(tree))
    return text.encode("ascii")


def _listed(value: Any) -> list[Any]:
    """Numbers that :func:`mal.segmentation.packed` keeps."""
    if isinstance(value, array):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not written as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, array)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
