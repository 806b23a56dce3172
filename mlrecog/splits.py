"""Which pictures the parts of a spec's dataset are. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fiducial.data.cache import default_cache_dir
from fiducial.data.remote import is_remote
from fiducial.data.sources import local_path, unwrapped
from fiducial.errors import DatasetError, UserError
from fiducial.redact import public_url
from fiducial.run.console import LOGGER
from mlrecog.folders import SUFFIXES, ClassFolders, Sample, is_image, read_class_folders, read_class_map, read_flat

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec

__all__ = ["CLASS_MAP", "QUERY", "REFERENCE", "TRAIN", "Inputs", "Sides"]
__all__ += ["cached_as", "named", "read_calibration", "read_inputs", "read_queries", "read_reference", "read_sides"]
__all__ += ["read_train"]

TRAIN = "dataset.train_dataset"
REFERENCE, QUERY = "dataset.val_dataset.reference", "dataset.val_dataset.query"
INPUT = "inference.input_path"
CALIBRATION = "dataset.quant_calibration_dataset.images_dir"
CLASS_MAP = "dataset.class_map"


@dataclass(frozen=True)
class Sides:
    """Gallery and queries; the queries' classes are numbered as the gallery's."""

    gallery: ClassFolders
    queries: ClassFolders

    @property
    def same(self) -> bool:
        """Whether both are one set, whose pictures must not find themselves."""
        return self.gallery.root.resolve() == self.queries.root.resolve()


def read_train(spec: ExperimentSpec) -> ClassFolders:
    """The pictures to train on. Raises: UserError naming what is missing or cannot be read."""
    return read_class_folders(_given(spec.dataset.train_dataset, TRAIN), key=TRAIN)


def read_reference(spec: ExperimentSpec) -> ClassFolders:
    """The gallery's pictures. Raises: UserError as :func:`read_train`."""
    return read_class_folders(_given(spec.dataset.val_dataset.reference, REFERENCE), key=REFERENCE)


def read_queries(spec: ExperimentSpec, gallery: ClassFolders | None = None) -> ClassFolders:
    """The queries, their classes numbered as the gallery's.

    Raises: UserError as :func:`read_train`; also where the gallery lacks a query's class.
    """
    value = _given(spec.dataset.val_dataset.query, QUERY)
    return read_class_folders(value, key=QUERY, classes=gallery.classes if gallery else None)


def read_sides(spec: ExperimentSpec) -> Sides:
    """Gallery and queries, with the names to show. Raises: UserError as :func:`read_queries`."""
    gallery = named(spec, read_reference(spec))
    return Sides(gallery, replace(read_queries(spec, gallery), names=gallery.names))


class Inputs(NamedTuple):
    """What inference looks up, without classes, below ``root``."""

    root: Path
    samples: tuple[Sample, ...]


def read_inputs(spec: ExperimentSpec) -> Inputs:
    """What inference looks up. Raises: UserError as :func:`read_train`."""
    section = spec.inference
    value = _given(section.input_path, INPUT)
    if section.inference_input_type == "classification_folder":
        found = read_class_folders(value, key=INPUT)
        return Inputs(found.root, tuple(Sample(sample.path, -1) for sample in found.samples))
    paths = read_flat(value, key=INPUT)
    if section.inference_input_type == "image" and len(paths) != 1:
        fix = "set inference.inference_input_type=image_folder"
        raise DatasetError(INPUT, f"{value} is a folder of {len(paths)} pictures, not a picture", fix)
    return Inputs(paths[0].parent, tuple(Sample(path, -1) for path in paths))


def read_calibration(spec: ExperimentSpec, folders: Sequence[str] = (), key: str = "") -> Inputs:
    """The pictures that a static quantization observes: of the calibration key's folder, and the folders in it; of
    ``folders``, which ``key`` names; else those to train on, or to evaluate with.

    Raises: UserError naming the key, where there are none.
    """
    given = [folder for folder in folders or (spec.dataset.quant_calibration_dataset.images_dir,) if folder]
    if given:
        roots = [unwrapped(local_path(folder, key=key or CALIBRATION), key=key or CALIBRATION) for folder in given]
        paths = [path for root in roots for path in sorted(root.rglob("*")) if is_image(path.name) and path.is_file()]
        if not paths:
            fix = f"name a folder that holds some; they end in {', '.join(SUFFIXES)}"
            raise DatasetError(key or CALIBRATION, f"no picture in {', '.join(given)}", fix)
        return Inputs(roots[0], tuple(Sample(path, -1) for path in paths))
    for read in (read_train, read_queries, read_reference):
        try:
            found = read(spec)
        except UserError:
            continue
        LOGGER.info("%s is not set: calibrating with the pictures in %s", CALIBRATION, found.root)
        return Inputs(found.root, found.samples)
    raise DatasetError(CALIBRATION, f"not set, and {TRAIN} is not there either", "name a folder of pictures")


def cached_as(value: str | None, root: Path) -> tuple[str, str]:
    """A folder of the cache, and what ``value`` of a spec key calls it: an archive or URL; empty texts elsewhere."""
    if not value or not root.resolve().is_relative_to(default_cache_dir().resolve()):
        return "", ""
    return str(root), (public_url(value).partition("?")[0] if is_remote(value) else value).rstrip("/")


def _given(value: str | None, key: str) -> str:
    if not value:
        raise DatasetError(key, "not set", "name a folder, archive or URL")
    return value


def named(spec: ExperimentSpec, folders: ClassFolders) -> ClassFolders:
    """The same with the names to show. Raises: UserError for a class map that cannot be read, or lacks a folder."""
    value = spec.dataset.class_map
    return folders.shown_as(read_class_map(value, key=CLASS_MAP, classes=folders.classes)) if value else folders
