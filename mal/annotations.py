"""Boxes and their pictures from annotation files: COCO's JSON, YOLO's text, Pascal VOC's XML. No torch.

Whatever the format, the result is COCO's: a tree with ``images``, ``annotations`` and ``categories``, in which every
annotation keeps its place. What cannot be used stays in it, with the reason.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fiducial.data.files import HEAD, is_folder, what_bytes_are, why_unreadable
from fiducial.data.images import MAX_PIXELS
from fiducial.errors import DatasetError, Problem, one_line
from mal.crop import Corners
from mal.formats import read_folder
from mal.segmentation import checked, checked_rle, numbers_of, packed

__all__ = ["Annotations", "Box", "Picture", "Rules", "Selection", "read_annotations", "select"]

_TABLES = ("images", "annotations", "categories")
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of ``images``."""

    id: Any
    file: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """One annotation. ``row`` is its place in the file, ``picture`` and ``category`` those in their tables.

    ``corners`` are the box's as given, floats in pixels; ``prompt`` says whether it was a point.
    """

    row: int
    id: Any
    picture: int
    category: int
    corners: Corners
    crowd: bool = False
    prompt: str = "box"

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.corners
        return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Annotations:
    """The content of an annotation file. ``unusable``: why, of the rows that are no boxes."""

    path: Path
    tree: Mapping[str, Any]
    pictures: tuple[Picture, ...]
    boxes: tuple[Box, ...]
    unusable: Mapping[int, str] = field(default_factory=dict)

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The annotations as they stand in the file; numbers as :func:`mal.segmentation.packed` has them."""
        rows: Sequence[Mapping[str, Any]] = self.tree["annotations"]
        return rows

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the categories, in the order of the file."""
        return [str(category.get("name", category["id"])) for category in self.tree["categories"]]

    def has_mask(self, box: Box) -> bool:
        """Whether the annotation says which pixels are the object's."""
        return bool(self.rows[box.row].get("segmentation"))

    def rle(self, box: Box) -> dict[str, Any]:
        """Its mask as pycocotools' run lengths. Raises: DatasetError when it is no mask."""
        return self._segmentation(box, checked_rle)

    def check_mask(self, box: Box) -> None:
        """Raises: DatasetError when its segmentation is no mask."""
        self._segmentation(box, checked)

    def _segmentation(self, box: Box, read: Callable[[Any, tuple[int, int]], _Read]) -> _Read:
        picture = self.pictures[box.picture]
        try:
            return read(self.rows[box.row].get("segmentation"), (picture.height, picture.width))
        except ValueError as error:
            where = f"{self.path}: annotation {one_line(box.id, 40)}"
            raise DatasetError(where, f"its segmentation is no mask ({error})", "mend it, or leave it out") from None

    def mask(self, box: Box) -> NDArray[np.uint8]:
        """Its mask in the whole picture, 0 or 1, ``(height, width)``. Raises: DatasetError when it is no mask."""
        from pycocotools import mask as coco_mask

        decoded: NDArray[np.uint8] = coco_mask.decode(self.rle(box))
        return decoded


@dataclass(frozen=True)
class Rules:
    """Which boxes are used. ``clip``: cut boxes to their picture, else those that leave it are not used (TAO).

    Areas are strictly between ``min_area`` and ``max_area``, sides strictly above ``min_side``, all in pixels.
    ``crowd``: whether boxes around several objects are used.
    """

    clip: bool = True
    min_area: float = 0.0
    max_area: float = math.inf
    min_side: float = 0.0
    crowd: bool = True


@dataclass(frozen=True)
class Selection:
    """The boxes that are used; how many of them were ``clipped``; by row, why others are ``left_out``."""

    boxes: tuple[Box, ...]
    clipped: int
    left_out: Mapping[int, str]

    def reasons(self) -> dict[str, int]:
        """How often each reason was one."""
        return dict(Counter(self.left_out.values()).most_common())


def select(annotations: Annotations, rules: Rules) -> Selection:
    """Which boxes of a file are used, and why the others are not."""
    used, clipped, left_out = [], 0, dict(annotations.unusable)
    for box in annotations.boxes:
        picture = annotations.pictures[box.picture]
        inside = _cut(box.corners, picture)
        beyond = inside != box.corners
        corners = inside if rules.clip else box.corners
        reason = _reason(corners, box.crowd, beyond and not rules.clip, rules)
        if reason:
            left_out[box.row] = reason
            continue
        clipped += beyond
        used.append(replace(box, corners=corners) if beyond else box)
    return Selection(tuple(used), clipped, left_out)


def _cut(corners: Corners, picture: Picture) -> Corners:
    x0, y0, x1, y1 = corners
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(picture.width)), min(y1, float(picture.height))


def _reason(corners: Corners, crowd: bool, leaves: bool, rules: Rules) -> str:
    width, height = corners[2] - corners[0], corners[3] - corners[1]
    if leaves:
        return "reaches beyond its picture"
    if width <= 0 or height <= 0:
        return "has no area in its picture"
    if crowd and not rules.crowd:
        return "is a crowd"
    if width <= rules.min_side or height <= rules.min_side:
        return f"is at most {rules.min_side:g} pixels wide or high"
    if width * height <= rules.min_area:
        return f"is not larger than {rules.min_area:g} square pixels"
    if width * height >= rules.max_area:
        return f"is not smaller than {rules.max_area:g} square pixels"
    return ""


def read_annotations(
    path: Path,
    *,
    images: Path | None = None,
    kind: str = "coco",
    point_size: float | None = None,
    masks: bool = True,
) -> Annotations:
    """Read an annotation file, or a folder of them.

    ``kind``: coco, yolo or voc; a folder is read by what lies in it. ``images``: where the pictures are; needed where
    the format does not hold their sizes. ``point_size``: the side of the box that a point means, in pixels; without it
    a fifth of the picture's shorter side. ``masks``: also read masks that lie in files of their own.

    Raises: DatasetError listing everything that makes the file unusable.
    """
    if is_folder(path) or kind != "coco":
        path, found_tree = read_folder(path, images, masks=masks)
        tree = _read_coco(path) if found_tree is None else found_tree
    else:
        tree = _read_coco(path)
    problems = [Problem(str(path), f"has no list {name!r}", _COCO) for name in _TABLES if not _is_table(tree.get(name))]
    if problems:
        raise DatasetError.of(problems)
    pictures, problems = _pictures(tree["images"], path)
    categories = [category.get("id") for category in tree["categories"]]
    problems.extend(_repeated(categories, path, "categories"))
    if problems:
        raise DatasetError.of(problems)
    places = {picture.id: place for place, picture in enumerate(pictures)}
    names = {name: place for place, name in enumerate(categories)}
    boxes, unusable = [], {}
    for row, annotation in enumerate(tree["annotations"]):
        found_box = _box(row, annotation, places, names, pictures, point_size)
        if isinstance(found_box, Box):
            boxes.append(found_box)
        else:
            unusable[row] = found_box
    return Annotations(path, tree, tuple(pictures), tuple(boxes), unusable)


_COCO = "a COCO file has images, annotations and categories, each a list of objects"
_Id = (int, float, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _read_coco(path: Path) -> dict[str, Any]:
    if wrong := why_unreadable(path):
        raise DatasetError(str(path), f"cannot be read: {wrong[0]}", wrong[1])
    try:
        data = path.read_bytes()
        head = data[:HEAD]
        text = data.decode(json.detect_encoding(data), "surrogatepass")  # UTF-8, UTF-16, with byte order marks or not
        del data  # large files are not held twice
        tree = json.loads(text, object_hook=packed)
    except OSError as error:
        raise DatasetError(str(path), f"cannot be read ({error.strerror or error})", "check the path") from None
    except (ValueError, RecursionError) as error:
        found, fix = what_bytes_are(head) or (one_line(error), "export the annotations as COCO's JSON again")
        raise DatasetError(str(path), f"no JSON ({found})", fix) from None
    if not isinstance(tree, dict):
        raise DatasetError(str(path), f"a JSON {type(tree).__name__}, no object", _COCO)
    return tree


def _pictures(rows: Sequence[Mapping[str, Any]], path: Path) -> tuple[list[Picture], list[Problem]]:
    pictures, problems = [], list(_repeated([row.get("id") for row in rows], path, "images"))
    for place, row in enumerate(rows):
        name, width, height = row.get("file_name"), _side(row.get("width")), _side(row.get("height"))
        if not isinstance(name, str) or not name or "\0" in name:
            problems.append(
                Problem(
                    f"{path}: images[{place}]", f"file_name is {one_line(repr(name), 80)}", "give the picture's file"
                )
            )
        elif not width or not height:
            found = one_line(f"width {row.get('width')!r}, height {row.get('height')!r}", 80)
            problems.append(Problem(f"{path}: {name}", found, "give the picture's size in pixels"))
        elif width * height > MAX_PIXELS:
            found = f"{width} x {height}: more than {MAX_PIXELS:,} pixels"
            problems.append(Problem(f"{path}: {name}", found, "give the picture's size, or cut it into tiles"))
        else:
            pictures.append(Picture(row.get("id"), name, width, height))
    return pictures, problems


def _side(value: Any) -> int:
    """A width or height in pixels, 0 for what is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= MAX_PIXELS
    return int(value) if number else 0


def _repeated(ids: Sequence[Any], path: Path, table: str) -> Iterator[Problem]:
    hashable = [i for i in ids if isinstance(i, _Id)]
    if len(hashable) < len(ids):
        yield Problem(f"{path}: {table}", "some have no id", "give each a number")
    twice = [i for i, count in Counter(hashable).items() if count > 1]
    if twice:
        shown = ", ".join(map(str, twice[:3]))
        yield Problem(f"{path}: {table}", f"{len(twice)} ids stand twice (first: {shown})", "give each its own id")


def _box(
    row: int,
    annotation: Mapping[str, Any],
    places: Mapping[Any, int],
    names: Mapping[Any, int],
    pictures: Sequence[Picture],
    point_size: float | None,
) -> Box | str:
    """The box of an annotation, or why it has none."""
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if not isinstance(image, _Id) or image not in places:
        return "its image_id is none of the images"
    if not isinstance(category, _Id) or category not in names:
        return "its category_id is none of the categories"
    prompt = "point" if annotation.get("bbox") in (None, []) else "box"
    if prompt == "box":
        corners = _corners(annotation["bbox"])
    else:
        corners = _around_point(annotation, pictures[places[image]], point_size)
    if isinstance(corners, str):
        return corners
    crowd = bool(annotation.get("iscrowd"))
    return Box(row, annotation.get("id", row), places[image], names[category], corners, crowd, prompt)


def _corners(bbox: Any) -> Corners | str:
    numbers = numbers_of(bbox)
    if numbers is None or len(numbers) != 4:
        return "its bbox is not four numbers x, y, width, height"
    x, y, width, height = numbers
    if width < 0 or height < 0:
        return "its bbox has a negative width or height"
    if not width or not height:
        return "its box is empty"
    return x, y, x + width, y + height


def _around_point(annotation: Mapping[str, Any], picture: Picture, size: float | None) -> Corners | str:
    """The box of a point prompt: the tight one of the visible keypoints, at least ``size`` on each side."""
    point, keypoints = (numbers_of(annotation.get(name)) or [] for name in ("point", "keypoints"))
    if not point and not keypoints:
        return "it has neither bbox nor point"
    flat = point or [n for i in range(0, len(keypoints) - 2, 3) if keypoints[i + 2] > 0 for n in keypoints[i : i + 2]]
    points = list(zip(flat[::2], flat[1::2], strict=False))  # keypoints are x, y, visibility
    if not points:
        return "none of its points is visible"
    side = size or min(picture.width, picture.height) / 5
    lows, highs = [min(p[i] for p in points) for i in (0, 1)], [max(p[i] for p in points) for i in (0, 1)]
    wider = [max(0.0, side - (high - low)) / 2 for low, high in zip(lows, highs, strict=True)]
    return lows[0] - wider[0], lows[1] - wider[1], highs[0] + wider[0], highs[1] + wider[1]
