"""YOLO's text files: an object a line, ``class x y width height`` or ``class x y x y x y …``. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiducial.data.files import is_file
from fiducial.errors import SHOWN, DatasetError, Problem
from fiducial.spec.yaml_file import read_yaml
from mal.annotated import Annotated, Pictures, Thing, content_of

__all__ = ["class_names", "names_of_data_set", "read_yolo"]

_FIX = "write: class x y width height, or class and a polygon x y x y x y …, as shares of the picture"
_MOST_CLASSES = 1 << 16
_DATA_SETS = ("data.yaml", "dataset.yaml")
_UPWARDS = 2
"""How far above a folder of labels the description of its data set may lie: labels/train, train/labels."""
_FARTHEST = 2.0
"""A share of the picture beyond which a number is taken for pixels."""


def class_names(path: Path) -> list[str]:
    """The names of a ``classes.txt``, one a line; blank ones at its end are none."""
    return [name.strip() for name in _text(path).rstrip().split("\n")]


def names_of_data_set(folder: Path) -> list[str]:
    """The ``names`` of the ``data.yaml`` that describes a data set, in the folder of labels or above; [] without one.

    Raises: SpecError when it is no YAML.
    """
    places = [folder.absolute(), *folder.absolute().parents[:_UPWARDS]]
    for path in (place / name for place in places for name in _DATA_SETS):
        if is_file(path):
            found = read_yaml(path)
            names = found.get("names") if isinstance(found, dict) else None
            if isinstance(names, list):
                return [str(name) for name in names]
            if isinstance(names, dict):
                return _numbered(names)
    return []


def _numbered(names: Mapping[str, Any]) -> list[str]:
    """Names by their numbers; a number that has none is its own name."""
    known = {int(key): str(name) for key, name in names.items() if key.isdecimal() and int(key) < _MOST_CLASSES}
    return [known.get(number, str(number)) for number in range(max(known, default=-1) + 1)]


def read_yolo(path: Path, name: str, pictures: Pictures, classes: list[str]) -> Annotated:
    """A file of the picture ``name``. A polygon is both the box and the mask.

    Raises: DatasetError naming every line that is wrong.
    """
    picture = pictures.find(name)
    if picture is None:
        raise DatasetError(str(path), f"no picture {name} in {pictures.root}", "check the folder of the pictures")
    size, things = pictures.size(picture), []
    problems: list[Problem] = []
    for line, text in enumerate(_text(path).splitlines(), 1):
        if text.strip():
            try:
                things.append(_thing(text.split(), size, classes))
            except ValueError as error:
                problems.append(Problem(f"{path}:{line}", str(error), _FIX))
        if len(problems) > SHOWN:  # no file of labels at all, perhaps
            break
    if problems:
        raise DatasetError.of(problems)
    return Annotated(picture, size, things)


def _text(path: Path) -> str:
    try:
        return content_of(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(str(path), "not UTF-8 text", "save it as UTF-8") from None


def _thing(words: list[str], size: tuple[int, int], classes: list[str]) -> Thing:
    """Raises: ValueError saying what is wrong with the line."""
    try:
        number, shares = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"not numbers: {' '.join(words)[:60]!r}") from None
    if len(shares) < 4 or (len(shares) > 4 and len(shares) % 2):
        raise ValueError(f"{len(shares)} numbers after the class")
    if not 0 <= number < (len(classes) or _MOST_CLASSES):
        raise ValueError(f"class {number} of {len(classes)}" if classes else f"class {number}")
    beyond = [share for share in shares if not math.fabs(share) <= _FARTHEST]
    if beyond:
        raise ValueError(f"{beyond[0]:g} is no share of the picture")
    if len(shares) == 4:
        x, y, width, height = shares
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        corners = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    x0, y0, x1, y1 = (share * size[i % 2] for i, share in enumerate(corners))
    polygon = [share * size[i % 2] for i, share in enumerate(shares)] if len(shares) > 4 else None
    return Thing(number, (x0, y0, x1, y1), polygon and [polygon])
