"""The pairs that a static quantization observes: those of a CSV, or the images of a folder, each its own golden.

TAO reads a flat folder and compares every image with itself, and then hands its two-input network one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from changenet.classify.rows import SAMPLES, SPLITS, Layout, PairRow, PairTable, names_in, read_csv, read_pairs
from fiducial.data.archives import images_root
from fiducial.data.checks import spread
from fiducial.data.files import is_file, is_folder
from fiducial.data.sources import local_file, local_path, unwrapped
from fiducial.errors import DatasetError, UserError
from fiducial.run.console import LOGGER

if TYPE_CHECKING:
    from changenet.classify.config import ClassifyDataset

__all__ = ["calibration_tables"]

_KEY = "dataset.classify.quant_calibration_dataset"
_IN_PLACE = ("train", "val", "test", "infer")
"""Splits whose pairs are observed where no calibration data are named, in the order of preference."""


def calibration_tables(data: ClassifyDataset, folders: Sequence[str] = (), key: str = "") -> list[PairTable]:
    """The pairs of the calibration key; of ``folders``, which ``key`` names; else of the first split that is there.

    In a folder the rows of the calibration CSV count, else those of the training CSV whose files are in it, else its
    own images.

    Raises: UserError naming the key.
    """
    files = data.quant_calibration_dataset
    if not folders and not files.images_dir:
        if files.csv_path:
            raise DatasetError(f"{_KEY}.images_dir", "not set", "name the folder that the paths of its CSV start from")
        return [_of_a_split(data)]
    if folders:
        return [_of_folder(data, folder, key, "") for folder in folders]
    return [_of_folder(data, files.images_dir, f"{_KEY}.images_dir", files.csv_path)]


def _of_a_split(data: ClassifyDataset) -> PairTable:
    for split in _IN_PLACE:
        section = getattr(data, SPLITS[split])
        if section.csv_path and section.images_dir:
            table = read_pairs(data, split)
            LOGGER.info("%s.images_dir is not set: calibrating with pairs of %s", _KEY, table.csv_path)
            return table
    found = "not set, and no CSV of pairs is either"
    raise DatasetError(f"{_KEY}.images_dir", found, "name a folder of images, or set dataset.classify.train_dataset")


def _of_folder(data: ClassifyDataset, value: str, key: str, csv_path: str) -> PairTable:
    folder = local_path(value, key=key)
    if not is_folder(folder):
        raise DatasetError(key, f"{value} is a file, not a folder", "name a folder of images, or an archive of it")
    folder = unwrapped(folder, key=key)
    if csv_path:
        table = _of_csv(data, csv_path, folder)
        if not table.rows:
            found = f"no row of {csv_path} has its images in {folder}"
            raise DatasetError(f"{_KEY}.csv_path", found, "check images_dir, input_map and image_ext")
        return table
    pairs = _to_train_on(data, folder)
    return pairs if pairs is not None else _of_images(folder, Layout.of(data), key)


def _to_train_on(data: ClassifyDataset, folder: Path) -> PairTable | None:
    """The rows of the training CSV whose images are in the folder; None where it has none of them."""
    if not data.train_dataset.csv_path:
        return None
    try:
        table = _of_csv(data, data.train_dataset.csv_path, folder)
    except UserError:  # it is not what was asked for
        return None
    return table if table.rows else None


def _of_csv(data: ClassifyDataset, csv_path: str, folder: Path) -> PairTable:
    """The rows of a CSV whose images are all in the folder."""
    path = local_file(csv_path, key=f"{_KEY}.csv_path", suffix=".csv")
    columns, rows = read_csv(path, need_label=False)
    root = images_root(folder, [str(PurePosixPath(row.input_path, row.object_name)) for row in spread(rows, SAMPLES)])
    table = PairTable(path, root, columns, tuple(rows), Layout.of(data))
    return replace(table, rows=tuple(row for row in rows if all(map(is_file, _files(table, row)))))


def _files(table: PairTable, row: PairRow) -> Iterator[Path]:
    yield from table.test_files(row)
    if table.layout.num_golden == 1:
        yield from table.golden_files(row)
    elif not table.golden_names(row):
        yield table.images_dir / row.golden_path / table.layout.image_ext  # no file has this name


def _of_images(folder: Path, layout: Layout, key: str) -> PairTable:
    names = names_in(folder, layout)
    if not names:
        found = f"no image that ends in {layout.image_ext} in {folder} itself"
        raise DatasetError(key, found, "name a folder that holds images, or check dataset.classify.image_ext")
    LOGGER.warning("%s: no CSV names pairs in %s: each image is compared with itself", key, folder)
    rows = tuple(PairRow(i, i + 1, {"object_name": name}, ".", ".") for i, name in enumerate(names))
    return PairTable(folder, folder, ("object_name",), rows, layout)
