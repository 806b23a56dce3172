"""The CSV of image pairs: its rows, the files they name, and the size of what they compose to. No torch.

One row is one part: a test image and its golden reference, each possibly photographed under several lights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from changenet.classify.tables import read_table
from fiducial.data.archives import images_root
from fiducial.data.checks import spread
from fiducial.data.files import is_folder
from fiducial.data.once import once
from fiducial.data.sources import local_file, local_path, unwrapped
from fiducial.errors import DatasetError, Problem
from fiducial.spec.path_map import mapped

if TYPE_CHECKING:
    from changenet.classify.config import ClassifyDataset

COLUMNS = ("input_path", "golden_path", "label", "object_name")
PASS = "PASS"
SPLITS = {
    "train": "train_dataset",
    "val": "validation_dataset",
    "test": "test_dataset",
    "infer": "infer_dataset",
}
"""Split to the section of ``dataset.classify`` that names its files."""
Image = tuple[str, str]
"""An image that a row names: the folder, and the first part of the names, of its files."""
SAMPLES = 20
"""Rows, evenly spread, whose images tell which folder the paths start from."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """One line of the CSV."""

    index: int
    """Its place among the rows, from 0."""
    line: int
    """Its line in the file, from 1, the header included."""
    fields: dict[str, str] = field(repr=False)
    """Every column by its header, as the text it is."""
    input_path: str
    """Where the test image is, below ``images_dir``; folders of a container mapped to this machine's."""
    golden_path: str
    """Where the golden is, likewise; with several goldens, the folder that holds them."""

    @property
    def object_name(self) -> str:
        """First part of the file names: ``<object_name>[_<light>]<image_ext>``."""
        return self.fields["object_name"]

    @property
    def label(self) -> int:
        """0 for exactly ``PASS``, 1 for anything else; -1 when the CSV has no label column."""
        return -1 if "label" not in self.fields else int(self.fields["label"] != PASS)


@dataclass(frozen=True)
class Layout:
    """How lights become one image, and names become files."""

    lights: tuple[str, ...]
    """Suffixes of the files of one image, in the order they are joined; empty: one file without suffix."""
    image_ext: str
    tile: tuple[int, int]
    """(height, width) in pixels that the image of every light is resized to."""
    grid: tuple[int, int] | None
    """(rows, columns) of lights; None stacks them downwards."""
    num_golden: int

    @classmethod
    def of(cls, dataset: ClassifyDataset) -> Layout:
        """The layout a spec asks for. TAO's order of lights: that of the keys of ``input_map``."""
        lights = tuple(dataset.input_map or ())
        grid = None
        # TAO-compat: an odd number of lights is never laid out as a grid
        if dataset.concat_type == "grid" and dataset.grid_map and len(lights) % 2 == 0 and lights:
            grid = (dataset.grid_map["y"], dataset.grid_map["x"])
            lights = lights[: grid[0] * grid[1]]
        return cls(lights, dataset.image_ext, (dataset.image_height, dataset.image_width), grid, dataset.num_golden)

    @property
    def composed(self) -> tuple[int, int]:
        """(height, width) in pixels of the network's input."""
        rows, columns = self.grid or (max(1, len(self.lights)), 1)
        return self.tile[0] * rows, self.tile[1] * columns

    def files(self, folder: Path, path: str, name: str) -> tuple[Path, ...]:
        """The files of one image, one per light. An absolute ``path`` replaces ``folder``."""
        return tuple(map(Path, self.paths(str(folder / path), name)))

    def paths(self, folder: str, name: str) -> list[str]:
        """The files of an image in a folder, one per light, as text: of many, a tenth of the time and the memory."""
        return [os.path.join(folder, f"{name}{suffix}{self.image_ext}") for suffix in self._suffixes]

    @property
    def num_files(self) -> int:
        """How many files an image has."""
        return len(self._suffixes)

    @cached_property
    def _suffixes(self) -> tuple[str, ...]:
        return tuple(f"_{light}" for light in self.lights) or ("",)


@dataclass(frozen=True)
class PairTable:
    """The rows of one CSV with the folder their paths start from."""

    csv_path: Path
    images_dir: Path
    columns: tuple[str, ...]
    rows: tuple[PairRow, ...]
    layout: Layout
    _folders: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def test_files(self, row: PairRow) -> tuple[Path, ...]:
        """The test image's files, one per light."""
        return self.layout.files(self.images_dir, row.input_path, row.object_name)

    def golden_files(self, row: PairRow) -> tuple[Path, ...]:
        """The golden's files, one per light (only with one golden)."""
        return self.layout.files(self.images_dir, row.golden_path, row.object_name)

    def test_image(self, row: PairRow) -> Image:
        """What names the test image's files; :meth:`Layout.paths` are they."""
        return self.folder(row.input_path), row.object_name

    def golden_image(self, row: PairRow) -> Image:
        """What names the golden's files (only with one golden)."""
        return self.folder(row.golden_path), row.object_name

    def folder(self, path: str) -> str:
        """The folder that a row's path leads to."""
        if path not in self._folders:
            self._folders[path] = str(self.images_dir / path)
        return self._folders[path]

    def golden_names(self, row: PairRow) -> tuple[str, ...]:
        """With several goldens: the names of the candidates in the row's folder, sorted."""
        return names_in(self.images_dir / row.golden_path, self.layout)

    def golden_key(self, row: PairRow) -> tuple[str, str]:
        """Equal for rows that are compared with the same golden (with several: the same folder of them)."""
        return row.golden_path, row.object_name if self.layout.num_golden == 1 else ""

    def where(self, row: PairRow) -> str:
        """``file.csv:12``, for messages."""
        return f"{self.csv_path}:{row.line}"


_LISTINGS: dict[tuple[Path, Layout], tuple[str, ...]] = {}


def names_in(folder: Path, layout: Layout) -> tuple[str, ...]:
    """Images in a folder of goldens without light suffix and extension, sorted; listed once per process."""
    key = (folder, layout)
    if key not in _LISTINGS:
        names = os.listdir(folder) if is_folder(folder) and os.access(folder, os.R_OK) else ()
        stems = {name.removesuffix(layout.image_ext) for name in names if name.endswith(layout.image_ext)}
        for light in layout.lights:
            stems = {stem.removesuffix(f"_{light}") for stem in stems}
        _LISTINGS[key] = tuple(sorted(stems))
    return _LISTINGS[key]


def read_pairs(dataset: ClassifyDataset, split: str) -> PairTable:
    """Read the CSV of a split (``train``, ``val``, ``test``, ``infer``), once in a run, and find its images.

    Both may be local, archives or remote. In an archive the images may lie at the root or in an inner folder.

    Raises: DatasetError when the keys are not set, the CSV has no rows or lacks columns; SourceError when a file or
        folder cannot be had.
    """
    return once(("pairs", split, dataset.model_dump_json()), lambda: _read_pairs(dataset, split))


def _read_pairs(dataset: ClassifyDataset, split: str) -> PairTable:
    name = SPLITS[split]
    key = f"dataset.classify.{name}"
    files = getattr(dataset, name)
    unset = [part for part in ("csv_path", "images_dir") if not getattr(files, part)]
    if unset:
        raise DatasetError.of(
            Problem(f"{key}.{part}", "not set", "both csv_path and images_dir are needed") for part in unset
        )
    csv_path = local_file(files.csv_path, key=f"{key}.csv_path", suffix=".csv")
    columns, rows = read_csv(csv_path, need_label=split != "infer")
    folder = local_path(files.images_dir, key=f"{key}.images_dir")
    if not is_folder(folder):
        found = f"{files.images_dir} is a file, not a folder"
        raise DatasetError(f"{key}.images_dir", found, "name the folder of the images, or an archive of it")
    samples = [str(PurePosixPath(row.input_path, row.object_name)) for row in spread(rows, SAMPLES)]
    folder = images_root(unwrapped(folder, key=f"{key}.images_dir"), samples)
    return PairTable(csv_path, folder, columns, tuple(rows), Layout.of(dataset))


def read_csv(path: Path, *, need_label: bool = True) -> tuple[tuple[str, ...], list[PairRow]]:
    """The header and the rows of a pair CSV; every column is kept as the text it is.

    Raises: DatasetError as :func:`changenet.classify.tables.read_table`.
    """
    needed = COLUMNS if need_label else tuple(column for column in COLUMNS if column != "label")
    table = read_table(path, needed=needed, one_line=COLUMNS)
    rows = [
        PairRow(index, row.line, row.fields, mapped(row.fields["input_path"]), mapped(row.fields["golden_path"]))
        for index, row in enumerate(table.rows)
    ]
    return table.columns, rows


def check_labels(table: PairTable) -> Iterator[Problem]:
    """Blank labels, and labels that only look like PASS: TAO counts both as defects without a word."""
    for row in table.rows:
        text = row.fields.get("label")
        if text is None:
            return
        if not text.strip():
            yield Problem(table.where(row), "blank label", "write PASS or the defect's name")
        elif text != PASS and text.strip().upper() == PASS:
            fix = f"write {PASS} exactly; every other text is a defect"
            yield Problem(table.where(row), f"label {text!r} counts as a defect", fix, "warning")


def named_images(table: PairTable) -> dict[Image, PairRow]:
    """Every image that the rows name, each once, with the first row that does."""
    found: dict[Image, PairRow] = {}
    for row in table.rows:
        found.setdefault(table.test_image(row), row)
        if table.layout.num_golden == 1:
            found.setdefault(table.golden_image(row), row)
        else:
            folder = table.folder(row.golden_path)
            for name in table.golden_names(row):
                found.setdefault((folder, name), row)
    return found
