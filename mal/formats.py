"""Annotations that lie in a file for each picture, YOLO's text and Pascal VOC's XML, as a COCO tree. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fiducial.data.checks import in_threads
from fiducial.data.files import is_file, is_folder
from fiducial.errors import DatasetError, UserError
from mal.annotated import Annotated, Pictures
from mal.voc import read_voc
from mal.yolo import class_names, names_of_data_set, read_yolo

__all__ = ["read_folder"]

_CLASS_LISTS = ("classes.txt", "obj.names")
_SAMPLES = 5


def read_folder(folder: Path, images: Path | None, *, masks: bool = True) -> tuple[Path, dict[str, Any] | None]:
    """The annotation files of a folder, and of those within, as a COCO tree; and where they lie.

    ``.xml``: Pascal VOC (:mod:`mal.voc`). ``.txt``: YOLO (:mod:`mal.yolo`), class names in ``classes.txt``,
    ``obj.names`` or the ``data.yaml`` of the data set where there is one. A folder with one ``.json`` and neither of
    them gives its path, and no tree. ``images``: where the pictures are, in the same folders as their annotations.
    ``masks``: also read VOC's masks.

    Raises: DatasetError naming every file and line that is wrong.
    """
    if not is_folder(folder):
        raise DatasetError(str(folder), "no folder", "give the folder of the .txt or .xml files")
    folder = _wrapped(folder)
    xml, texts, trees = (sorted(_files(folder, suffix)) for suffix in (".xml", ".txt", ".json"))
    lists = [path for path in texts if path.name in _CLASS_LISTS] or sorted(_files(folder, ".names"))
    texts = [path for path in texts if path not in lists]
    if not xml and not texts and len(trees) == 1:
        return trees[0], None
    if bool(xml) == bool(texts):
        found = "both .xml and .txt files" if xml else f"neither .xml nor .txt files, and {len(trees)} .json"
        raise DatasetError(
            str(folder), found, "give a folder of YOLO's .txt or Pascal VOC's .xml files, or a COCO file"
        )
    pictures = Pictures(images, [_name(path, folder) for path in (xml or texts)[:_SAMPLES]])
    classes: list[str] = []
    if texts:
        classes = class_names(lists[0]) if lists else names_of_data_set(folder)

    def read(path: Path) -> Annotated | UserError:
        name = _name(path, folder)
        try:
            if xml:
                return read_voc(path, name, pictures, _masks_of(path, folder) if masks else None)
            return read_yolo(path, name, pictures, classes)
        except UserError as error:
            return error

    found_files = in_threads(read, xml or texts)
    problems = [problem for found in found_files if isinstance(found, UserError) for problem in found.problems]
    if problems:
        raise DatasetError.of(problems)
    return folder, _tree([found for found in found_files if isinstance(found, Annotated)], classes)


def _wrapped(folder: Path) -> Path:
    """The folder, or what it merely wraps, as archives do."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:  # that may not be read: nothing is found in it either
        return folder
    return _wrapped(entries[0]) if len(entries) == 1 and is_folder(entries[0]) else folder


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    return (path for path in folder.rglob(f"*{suffix}") if not path.name.startswith(".") and is_file(path))


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))[: -len(path.suffix)]


def _masks_of(path: Path, folder: Path) -> Path:
    """Where Pascal VOC has the masks of an annotation file."""
    return folder.parent / "SegmentationObject" / path.relative_to(folder).with_suffix(".png")


def _tree(files: Sequence[Annotated], classes: Sequence[str]) -> dict[str, Any]:
    labels: list[Any] = sorted({thing.label for file in files for thing in file.things})  # all names, or all numbers
    if labels and isinstance(labels[-1], int):
        labels = list(range(max(labels[-1] + 1, len(classes))))
    elif classes:
        labels = list(range(len(classes)))
    named = [classes[label] if classes else str(label) for label in labels]
    number = {label: place for place, label in enumerate(labels, 1)}
    tree: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": place, "name": name} for place, name in enumerate(named, 1)],
    }
    for place, (picture, (width, height), things) in enumerate(files, 1):
        tree["images"].append({"id": place, "file_name": picture, "width": width, "height": height})
        for label, (x0, y0, x1, y1), segmentation in things:
            bbox = [x0, y0, x1 - x0, y1 - y0]
            row = {"id": len(tree["annotations"]) + 1, "image_id": place, "category_id": number[label], "bbox": bbox}
            row |= {"area": bbox[2] * bbox[3], "iscrowd": 0}
            tree["annotations"].append(row if segmentation is None else {**row, "segmentation": segmentation})
    return tree
