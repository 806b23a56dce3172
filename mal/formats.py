"""Boxes of YOLO's text files and Pascal VOC's XML files, as a COCO tree. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from fiducial.errors import DatasetError

__all__ = ["read_folder"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MOST_BYTES = 1 << 26


class _Found(NamedTuple):
    """One box: the name of its class, its corners in pixels."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


def read_folder(folder: Path, images: Path | None) -> dict[str, Any]:
    """The annotation files of a folder, one for each picture, as a COCO tree.

    ``.xml``: Pascal VOC, corners counted from 1. ``.txt``: YOLO, ``class x y width height`` (or a polygon) as shares of
    the picture, class names in ``classes.txt`` or ``obj.names`` where there is one. ``images``: where the pictures are.

    Raises: DatasetError naming the file and line.
    """
    if not folder.is_dir():
        raise DatasetError(str(folder), "no folder", "give the folder of the .txt or .xml files")
    names = next((folder / name for name in ("classes.txt", "obj.names") if (folder / name).is_file()), None)
    xml = sorted(folder.glob("*.xml"))
    texts = [path for path in sorted(folder.glob("*.txt")) if path != names]
    if bool(xml) == bool(texts):
        found = "both .xml and .txt files" if xml else "neither .xml nor .txt files"
        raise DatasetError(str(folder), found, "give a folder of YOLO's .txt or of Pascal VOC's .xml files")
    if xml:
        return _tree([_voc(path) for path in xml], [])
    if images is None:
        raise DatasetError(str(folder), "YOLO's boxes are shares of pictures that are not named", "give the img_dir")
    known = _text(names).split("\n") if names else []
    classes = [name.strip() for name in known if name.strip()]
    return _tree([_yolo(path, _picture_of(path, images), classes) for path in texts], classes)


class _File(NamedTuple):
    picture: str
    width: int
    height: int
    boxes: list[_Found]


def _tree(files: list[_File], classes: list[str]) -> dict[str, Any]:
    labels = classes or sorted({box.label for file in files for box in file.boxes})
    number = {label: place + 1 for place, label in enumerate(labels)}
    tree: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number[label], "name": label} for label in labels],
    }
    for place, file in enumerate(files, 1):
        tree["images"].append({"id": place, "file_name": file.picture, "width": file.width, "height": file.height})
        for box in file.boxes:
            bbox = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
            row = {"id": len(tree["annotations"]) + 1, "image_id": place, "category_id": number[box.label]}
            tree["annotations"].append({**row, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
    return tree


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DatasetError(str(path), "too large for an annotation file", "check what it is")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(str(path), "not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise DatasetError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from None


def _picture_of(path: Path, images: Path) -> Path:
    found = [images / f"{path.stem}{suffix}" for suffix in _IMAGE_SUFFIXES]
    found += [picture.with_suffix(picture.suffix.upper()) for picture in found]
    picture = next((picture for picture in found if picture.is_file()), None)
    if picture is None:
        raise DatasetError(str(path), f"no picture {path.stem} in {images}", "check the img_dir")
    return picture


def _yolo(path: Path, picture: Path, classes: list[str]) -> _File:
    from fiducial.data.images import read_image

    size = read_image(picture).size
    boxes = []
    for line, text in enumerate(_text(path).splitlines(), 1):
        if text.strip():
            where = f"{path}:{line}"
            boxes.append(_yolo_box(text.split(), size, classes, where))
    return _File(picture.name, *size, boxes)


def _yolo_box(words: list[str], size: tuple[int, int], classes: list[str], where: str) -> _Found:
    fix = "write: class x y width height, the last four as shares of the picture"
    try:
        number, *shares = int(words[0]), *map(float, words[1:])
    except ValueError:
        raise DatasetError(where, f"not numbers: {' '.join(words)[:60]!r}", fix) from None
    if len(shares) < 4 or (len(shares) > 4 and len(shares) % 2) or not all(map(math.isfinite, shares)):
        raise DatasetError(where, f"{len(shares)} numbers after the class", fix)
    if number < 0 or (classes and number >= len(classes)):
        raise DatasetError(where, f"class {number} of {len(classes)}", "add its name to classes.txt")
    if len(shares) == 4:
        x, y, width, height = shares
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:  # a polygon
        corners = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    label = classes[number] if classes else str(number)
    return _Found(label, *(share * size[i % 2] for i, share in enumerate(corners)))


def _voc(path: Path) -> _File:
    try:
        root = ElementTree.fromstring(_text(path))
    except ElementTree.ParseError as error:
        raise DatasetError(str(path), f"no XML ({error})", "export the annotations again") from None

    def number(parent: ElementTree.Element | None, name: str, kind: Callable[[str], float]) -> float:
        text = None if parent is None else parent.findtext(name)
        try:
            value = kind((text or "").strip())
        except ValueError:
            raise DatasetError(str(path), f"<{name}> is {text!r}", "it must be a number") from None
        return value

    size, boxes = root.find("size"), []
    for found in root.iter("object"):
        corners = (number(found.find("bndbox"), name, float) for name in ("xmin", "ymin", "xmax", "ymax"))
        x0, y0, x1, y1 = corners
        boxes.append(_Found((found.findtext("name") or "object").strip(), x0 - 1, y0 - 1, x1, y1))
    picture = (root.findtext("filename") or "").strip() or f"{path.stem}.jpg"
    return _File(picture, int(number(size, "width", float)), int(number(size, "height", float)), boxes)
