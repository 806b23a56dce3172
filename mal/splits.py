"""Which annotations and pictures the parts of a spec's dataset are. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.data.archives import images_root
from fiducial.data.files import is_file, is_folder
from fiducial.data.sources import local_path, unwrapped
from fiducial.errors import DatasetError, Problem, UserError
from mal.annotations import Annotations, Picture, Rules, Selection, read_annotations, select

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["KEYS", "Split", "read_split", "rules_of", "values_of"]

KEYS = {
    "train": ("dataset.train_ann_path", "dataset.train_img_dir"),
    "val": ("dataset.val_ann_path", "dataset.val_img_dir"),
    "infer": ("inference.ann_path", "inference.img_dir"),
}
"""Of each split, the spec keys of its annotations and its pictures."""
_TAO_LARGEST = 1e9
_SAMPLES = 5


@dataclass(frozen=True)
class Split:
    """Annotations, the boxes of them that are used, and the folder of the pictures."""

    annotations: Annotations
    selection: Selection
    images: Path


def values_of(spec: ExperimentSpec, name: str) -> tuple[str, str]:
    """What the spec says for the keys of a split."""
    data = spec.dataset
    return {
        "train": (data.train_ann_path, data.train_img_dir),
        "val": (data.val_ann_path, data.val_img_dir),
        "infer": (spec.inference.ann_path, spec.inference.img_dir),
    }[name]


def rules_of(spec: ExperimentSpec, name: str) -> Rules:
    """Which boxes of a split are used: those of reasonable size to train on and to measure, all of them to label."""
    tao = spec.compat == "tao"
    if name == "train":
        data = spec.dataset
        return Rules(not tao, data.min_obj_size, data.max_obj_size, min_side=2.0, crowd=tao)
    if name == "val":
        return Rules(not tao, 0.0, _TAO_LARGEST, min_side=2.0, crowd=tao)
    return Rules(clip=False, max_area=_TAO_LARGEST, min_side=2.0) if tao else Rules()


def read_split(spec: ExperimentSpec, name: str) -> Split:
    """Read a split. Raises: UserError naming all that is missing or cannot be read."""
    file, images = _places(spec, name)
    data = spec.dataset
    masks = {"train": False, "val": data.load_mask, "infer": spec.inference.load_mask}[name]
    options = (images, data.type, data.point_size, masks)
    annotations = _read_once(file, _stamp(file), *options) if is_file(file) else _read(file, *options)
    names = [picture.file for picture in annotations.pictures[:_SAMPLES]]
    root = images_root(images, names) if names else images
    return Split(annotations, select(annotations, rules_of(spec, name)), root)


def _read(file: Path, images: Path, kind: str, point_size: float | None, masks: bool) -> Annotations:
    return read_annotations(file, images=images, kind=kind, point_size=point_size, masks=masks)


@lru_cache(maxsize=len(KEYS))
def _read_once(file: Path, stamp: tuple[int, ...], *options: Any) -> Annotations:
    """The look before an action and the action itself read the same file, which may take a minute."""
    return _read(file, *options)


def _stamp(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _places(spec: ExperimentSpec, name: str) -> tuple[Path, Path]:
    """Where the annotations and the pictures of a split are on this machine."""
    (ann_key, img_key), (ann_path, img_dir) = KEYS[name], values_of(spec, name)
    missing = [key for key, value in ((ann_key, ann_path), (img_key, img_dir)) if not value]
    if missing:
        raise DatasetError(" and ".join(missing), "not set", "name the annotations and the folder of their pictures")
    places: list[Path] = []
    problems: list[Problem] = []
    for find, value, key in ((local_path, ann_path, ann_key), (_pictures_at, img_dir, img_key)):
        try:
            places.append(find(value, key=key))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise DatasetError.of(problems)
    return places[0], places[1]


def _pictures_at(value: str, *, key: str) -> Path:
    folder = unwrapped(local_path(value, key=key), key=key)
    if not is_folder(folder):
        raise DatasetError(key, f"{folder} is no folder", "give a folder, or an archive of one")
    return folder


def pictures_of(split: Split) -> list[Picture]:
    """The pictures of the boxes that are used, in the order of the file."""
    return [split.annotations.pictures[place] for place in sorted({box.picture for box in split.selection.boxes})]
