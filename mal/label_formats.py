"""Masks in the files that labelling tools read: polygons in COCO, YOLO, CVAT and Label Studio, and masks as PNG."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from fiducial.errors import one_line
from fiducial.run.console import LOGGER
from mal.annotations import Box, Picture
from mal.coco_labels import write_json, write_labels
from mal.results import Labelled, Results

__all__ = ["WRITERS", "decoded", "label_studio", "polygons"]

Polygon = list[tuple[float, float]]


def decoded(found: Labelled) -> NDArray[np.bool_]:
    """The mask of the whole picture."""
    from pycocotools import mask as coco_mask

    mask: NDArray[np.bool_] = coco_mask.decode(dict(found.rle)) != 0
    return mask


def polygons(mask: NDArray[np.bool_]) -> list[Polygon]:
    """The outer contours of a mask, largest first, as corners ``(x, y)`` in pixels; holes are not told.

    Contours run midway between pixels inside and outside; the corner of the picture is (0, 0), its end (W, H).
    """
    from contourpy import FillType, contour_generator

    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = rows[0], columns[0]
    window = np.pad(mask[y : rows[-1] + 1, x : columns[-1] + 1].astype(float), 1)
    filled = contour_generator(z=window, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    outer = [points[: offsets[1] - 1] for points, offsets in zip(*filled, strict=True)]
    # the window has a border of one pixel, and values stand at the centres of pixels
    shifted = [_without_midpoints((points + np.array([x - 0.5, y - 0.5])).round(2)) for points in outer]
    shifted.sort(key=_shoelace, reverse=True)
    return [[(float(px), float(py)) for px, py in points] for points in shifted if len(points) > 2]


def _without_midpoints(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed polygon without the corners that lie on the line between their neighbours."""
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    kept: NDArray[np.float64] = points[np.abs(turn) > 1e-9]
    return kept


def _shoelace(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _by_picture(results: Results) -> Iterator[tuple[Picture, list[tuple[Box, Labelled]]]]:
    groups: dict[int, list[tuple[Box, Labelled]]] = {}
    for found in results.labelled:
        box = results.box(found)
        groups.setdefault(box.picture, []).append((box, found))
    for place, picture in enumerate(results.annotations.pictures):
        yield picture, groups.get(place, [])


def _coco_polygons(folder: Path, results: Results) -> list[Path]:
    """``labels_polygons.json``: the same COCO file with ``segmentation`` as polygons, and the masks' areas."""

    def flat(found: Labelled) -> list[list[float]]:
        return [[round(n, 2) for point in polygon for n in point] for polygon in polygons(decoded(found))]

    path = folder / "labels_polygons.json"
    write_labels(path, results, area="mask", segmentation=flat)
    return [path]


def _yolo(folder: Path, results: Results) -> list[Path]:
    """``yolo/``: ``class x y x y …`` as shares of the picture, one line for each mask; ``classes.txt``."""
    target = folder / "yolo"
    names = results.annotations.class_names
    written = [_text(target / "classes.txt", "".join(f"{one_line(name)}\n" for name in names))]
    for file, (picture, items) in zip(_files(results, ".txt"), _by_picture(results), strict=True):
        lines = []
        for box, found in items:
            for polygon in polygons(decoded(found))[:1]:  # a line holds one polygon: the largest
                shares = [n for x, y in polygon for n in (x / picture.width, y / picture.height)]
                lines.append(f"{box.category} " + " ".join(f"{n:.6f}" for n in shares))
        written.append(_text(target / file, "".join(f"{line}\n" for line in lines)))
    return written


def _png(folder: Path, results: Results) -> list[Path]:
    """``masks/``: of each picture one 16-bit PNG with the number of the object, 1 and up, in its pixels.

    Where masks lie over each other, the smaller one is on top. ``objects.csv`` says which annotation a number is.
    """
    from PIL import Image

    target = folder / "masks"
    target.mkdir(parents=True, exist_ok=True)
    names, written = results.annotations.class_names, [target / "objects.csv"]
    with written[0].open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["mask", "number", "annotation_id", "category"])
        for name, (picture, items) in zip(_files(results, ".png"), _by_picture(results), strict=True):
            numbered = list(enumerate(items, 1))
            writer.writerows([name, number, box.id, names[box.category]] for number, (box, _) in numbered)
            instances = np.zeros((picture.height, picture.width), np.uint16)
            for number, (_, found) in sorted(numbered, key=lambda item: -item[1][1].mask_area):
                instances[decoded(found)] = number
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(instances).save(path)
            written.append(path)
    return written


def _cvat(folder: Path, results: Results) -> list[Path]:
    """``cvat.xml``: "CVAT for images 1.1", polygons."""
    names = results.annotations.class_names
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    for number, (picture, items) in enumerate(_by_picture(results)):
        size = f'width="{picture.width}" height="{picture.height}"'
        lines.append(f'  <image id="{number}" name={_attribute(picture.file)} {size}>')
        for group, (box, found) in enumerate(items, 1):
            for polygon in polygons(decoded(found)):
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)
                label = _attribute(names[box.category])
                lines.append(
                    f'    <polygon label={label} source="auto" occluded="0" points="{points}" z_order="0" '
                    f'group_id="{group}"></polygon>'
                )
        lines.append("  </image>")
    return [_text(folder / "cvat.xml", "\n".join([*lines, "</annotations>", ""]))]


def label_studio(folder: Path, results: Results, image_root: str = "") -> list[Path]:
    """``label_studio.json``: tasks with predictions, polygons in percent of the picture.

    ``label_studio.xml``: the labelling interface that they belong to. ``image_root`` stands before the pictures' names.
    """
    names, tasks = results.annotations.class_names, []
    for picture, items in _by_picture(results):
        shapes = []
        for box, found in items:
            for part, polygon in enumerate(polygons(decoded(found))):
                points = [[round(100 * x / picture.width, 4), round(100 * y / picture.height, 4)] for x, y in polygon]
                shapes.append(
                    {
                        "id": f"{box.row}-{part}",
                        "type": "polygonlabels",
                        "from_name": "label",
                        "to_name": "image",
                        "original_width": picture.width,
                        "original_height": picture.height,
                        "image_rotation": 0,
                        "value": {"points": points, "closed": True, "polygonlabels": [names[box.category]]},
                    }
                )
        scores = [found.quality.score for _, found in items if found.quality is not None]
        prediction = {"model_version": "mal", "score": min(scores, default=0.0), "result": shapes}
        tasks.append({"data": {"image": image_root + picture.file}, "predictions": [prediction]})
    path = folder / "label_studio.json"
    write_json(path, tasks)
    choices = "".join(f"    <Label value={_attribute(name)}/>\n" for name in names)
    interface = (
        '<View>\n  <Image name="image" value="$image"/>\n  <PolygonLabels name="label" toName="image">\n'
        f"{choices}  </PolygonLabels>\n</View>\n"
    )
    return [path, _text(folder / "label_studio.xml", interface)]


WRITERS: dict[str, Callable[[Path, Results], Sequence[Path]]] = {
    "coco_polygons": _coco_polygons,
    "yolo": _yolo,
    "png": _png,
    "cvat": _cvat,
    "label_studio": label_studio,
}
"""What ``inference.formats`` adds to TAO's own file."""


def _files(results: Results, suffix: str) -> list[str]:
    """Of each picture its file below a folder of results: folders of its name included, never outside.

    Where another picture has that name already, as of two that differ in nothing but their suffix, it keeps its own.
    """
    files: list[str] = []
    taken: set[str] = set()
    for place, picture in enumerate(results.annotations.pictures):
        parts = [part for part in PurePosixPath(picture.file.replace("\\", "/")).parts if part not in ("/", "..", ".")]
        name = PurePosixPath(*parts)
        choices = [str(name.with_suffix(suffix)), f"{name}{suffix}", f"{name}-{place}{suffix}"]
        file = next((choice for choice in choices if choice not in taken), choices[-1])
        if file != choices[0]:
            LOGGER.warning("%s: written as %s, as another picture is %s", one_line(picture.file), file, choices[0])
        files.append(file)
        taken.add(file)
    return files


def _attribute(text: str) -> str:
    """A value in quotes, without the characters that XML cannot hold."""
    return quoteattr("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
