"""Pascal VOC's XML files, and the masks beside them. No torch."""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fiducial.data.files import is_file
from fiducial.data.images import read_image
from fiducial.errors import DatasetError, Problem, one_line
from mal.annotated import Annotated, Pictures, Thing, content_of
from mal.crop import Corners
from mal.segmentation import rle_of_mask

__all__ = ["read_voc"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_VOID = 255
_SAME = 0.5
"""Overlap (IoU) of boxes from which a mask is taken for an object's."""


class _PlainTree(ElementTree.TreeBuilder):
    """No document type: entities are what makes a small XML file large, or reads others."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type, which no annotation has")


def read_voc(path: Path, name: str, pictures: Pictures, masks: Path | None) -> Annotated:
    """A file of the picture that it names, else of ``name`` without suffix. Corners count from 1.

    ``masks``: a picture with the number of the object, from 1, in each pixel: those of the file in their order. Where
    an object's mask does not lie in its box, it is the object whose box is met best. 255 is no object.

    Raises: DatasetError naming everything that is wrong.
    """
    try:
        root = ElementTree.fromstring(content_of(path), ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # an encoding that is none is a LookupError
        raise DatasetError(str(path), f"no XML ({one_line(error)})", "export the annotations again") from None
    problems: list[Problem] = []
    things = []
    for place, found in enumerate(root.iter("object")):
        corners = [_number(found.find("bndbox"), side) for side in _SIDES]
        if wrong := [side for side, corner in zip(_SIDES, corners, strict=True) if corner is None]:
            problems.append(Problem(f"{path}: object {place + 1}", f"no number in <{wrong[0]}>", "give its corners"))
            continue
        x0, y0, x1, y1 = (corner or 0.0 for corner in corners)
        things.append(Thing((found.findtext("name") or "object").strip(), (x0 - 1, y0 - 1, x1, y1)))
    picture = _picture(root, name, pictures)
    size = _size(root, picture, pictures)
    if size is None:
        problems.append(Problem(str(path), "no <width> and <height> in <size>", "give the picture's size in pixels"))
    if problems or size is None:
        raise DatasetError.of(problems)
    if masks is not None and is_file(masks):
        found_masks = _masks_of(masks, size, [thing.corners for thing in things])
        things = [thing._replace(segmentation=mask) for thing, mask in zip(things, found_masks, strict=True)]
    return Annotated(picture, size, things)


def _number(parent: ElementTree.Element | None, name: str) -> float | None:
    try:
        value = float((parent.findtext(name) or "") if parent is not None else "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _size(root: ElementTree.Element, picture: str, pictures: Pictures) -> tuple[int, int] | None:
    """Width and height as they stand there, else of the picture."""
    width, height = (_number(root.find("size"), side) or 0.0 for side in ("width", "height"))
    if width >= 1 and height >= 1:
        return int(width), int(height)
    return pictures.size(picture) if pictures.has(picture) else None


def _picture(root: ElementTree.Element, name: str, pictures: Pictures) -> str:
    """The picture's file: as it stands there, in the folder of its annotations, or of their name."""
    given = (root.findtext("filename") or "").strip()
    beside = str(Path(name).parent / PureWindowsPath(given).name)  # takes slashes of both kinds
    known = next((file for file in (given, beside) if file and pictures.has(file)), None)
    return known or pictures.find(name) or given or f"{name}.jpg"


def _masks_of(path: Path, size: tuple[int, int], boxes: list[Corners]) -> list[dict[str, Any] | None]:
    """The mask of each box, as run lengths; None of those that have none."""
    picture = read_image(path)
    if picture.size != size:
        found = f"{picture.width} x {picture.height} pixels, {size[0]} x {size[1]} in the annotations"
        raise DatasetError(str(path), found, "give the masks of this version of the picture")
    if picture.mode not in ("P", "L", "I", "I;16", "I;16B"):
        found = f"colours ({picture.mode}), no numbers of objects"
        raise DatasetError(str(path), found, "save it with a palette, or grey")
    numbers = np.asarray(picture)
    known = [int(n) for n in np.unique(numbers) if n > 0 and (n != _VOID or numbers.dtype != np.uint8)]
    overlaps = {n: [_overlap(_bounds(numbers == n), box) for box in boxes] for n in known}
    owner = {n: n - 1 for n in known if n <= len(boxes) and overlaps[n][n - 1] >= _SAME}
    pairs = sorted(((iou, n, place) for n in known for place, iou in enumerate(overlaps[n])), reverse=True)
    for iou, n, place in pairs:
        if iou >= _SAME and n not in owner and place not in owner.values():
            owner[n] = place
    places = {place: n for n, place in owner.items()}
    return [rle_of_mask(numbers == places[i]) if i in places else None for i in range(len(boxes))]


def _bounds(mask: NDArray[np.bool_]) -> Corners:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _overlap(one: Corners, other: Corners) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common / both if both > 0 else 0.0
