"""The CSV of image pairs: its rows, the files they name, and the size of what they compose to. No torch.

One row is one part: a test image and its golden reference, each possibly photographed under several lights.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fiducial.data.archives import images_root
from fiducial.data.sources import local_path
from fiducial.errors import DatasetError, Problem, SourceError

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


@dataclass(frozen=True)
class PairRow:
    """One line of the CSV."""

    index: int
    """Its place among the rows, from 0."""
    line: int
    """Its line in the file, from 1, the header included."""
    fields: dict[str, str] = field(repr=False)
    """Every column by its header, as text."""

    @property
    def input_path(self) -> str:
        """Where the test image is, below ``images_dir``."""
        return self.fields["input_path"]

    @property
    def golden_path(self) -> str:
        """Where the golden is; with several goldens, the folder that holds them."""
        return self.fields["golden_path"]

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
        start = folder / path
        return tuple(start / f"{name}{suffix}{self.image_ext}" for suffix in self._suffixes)

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

    def test_files(self, row: PairRow) -> tuple[Path, ...]:
        """The test image's files, one per light."""
        return self.layout.files(self.images_dir, row.input_path, row.object_name)

    def golden_files(self, row: PairRow) -> tuple[Path, ...]:
        """The golden's files, one per light (only with one golden)."""
        return self.layout.files(self.images_dir, row.golden_path, row.object_name)

    def golden_names(self, row: PairRow) -> tuple[str, ...]:
        """With several goldens: the names of the candidates in the row's folder, sorted."""
        return _names_in(self.images_dir / row.golden_path, self.layout)

    def golden_key(self, row: PairRow) -> tuple[str, str]:
        """Equal for rows that are compared with the same golden (with several: the same folder of them)."""
        return row.golden_path, row.object_name if self.layout.num_golden == 1 else ""

    def where(self, row: PairRow) -> str:
        """``file.csv:12``, for messages."""
        return f"{self.csv_path}:{row.line}"


_LISTINGS: dict[tuple[Path, Layout], tuple[str, ...]] = {}


def _names_in(folder: Path, layout: Layout) -> tuple[str, ...]:
    """Images in a folder of goldens without light suffix and extension, sorted; listed once per process."""
    key = (folder, layout)
    if key not in _LISTINGS:
        stems = {p.name.removesuffix(layout.image_ext) for p in folder.glob(f"*{layout.image_ext}")}
        for light in layout.lights:
            stems = {stem.removesuffix(f"_{light}") for stem in stems}
        _LISTINGS[key] = tuple(sorted(stems))
    return _LISTINGS[key]


def read_pairs(dataset: ClassifyDataset, split: str) -> PairTable:
    """Read the CSV of a split (``train``, ``val``, ``test``, ``infer``) and find the folder of its images.

    Both may be local, archives or remote. In an archive the images may lie at the root or in an inner folder.

    Raises: DatasetError when the keys are not set, the CSV has no rows or lacks columns; SourceError when a file or
        folder cannot be had.
    """
    name = SPLITS[split]
    key = f"dataset.classify.{name}"
    files = getattr(dataset, name)
    unset = [part for part in ("csv_path", "images_dir") if not getattr(files, part)]
    if unset:
        raise DatasetError.of(
            Problem(f"{key}.{part}", "not set", "both csv_path and images_dir are needed") for part in unset
        )
    csv_path = local_path(files.csv_path, key=f"{key}.csv_path")
    columns, rows = read_csv(csv_path, need_label=split != "infer")
    layout = Layout.of(dataset)
    folder = local_path(files.images_dir, key=f"{key}.images_dir")
    with suppress(SourceError):  # none of them exists anywhere: the check of the files names each row
        folder = images_root(folder, [f"{row.input_path}/{row.object_name}" for row in rows[:5]])
    return PairTable(csv_path, folder, columns, tuple(rows), layout)


def read_csv(path: Path, *, need_label: bool = True) -> tuple[tuple[str, ...], list[PairRow]]:
    """The header and the rows of a pair CSV; every column is kept as the text it is.

    Raises: DatasetError naming the file (and line) for an unreadable file, missing columns, or lines that are too
        short or too long.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse(path, csv.reader(file), need_label)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(str(path), f"cannot be read as CSV: {error}", "save it as comma-separated UTF-8") from None


def _parse(path: Path, reader: Iterator[list[str]], need_label: bool) -> tuple[tuple[str, ...], list[PairRow]]:
    header = tuple(cell.strip() for cell in next(reader, []))
    wanted = COLUMNS if need_label else tuple(column for column in COLUMNS if column != "label")
    lacking = [column for column in wanted if column not in header]
    if lacking:
        separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
        raise DatasetError(
            f"{path}:1",
            f"no column {', '.join(lacking)}; the header is {', '.join(header) or 'empty'}",
            f"separate columns with commas, not {separator!r}"
            if separator
            else f"name the columns {', '.join(wanted)}",
        )
    rows: list[PairRow] = []
    problems: list[Problem] = []
    for cells in reader:
        line: int = getattr(reader, "line_num", 0)
        if not any(cells):
            continue
        if len(cells) != len(header):
            found = f"{len(cells)} values for {len(header)} columns"
            problems.append(Problem(f"{path}:{line}", found, "mend the line (quote values that hold commas)"))
            continue
        rows.append(PairRow(len(rows), line, dict(zip(header, cells, strict=True))))
    if problems:
        raise DatasetError.of(problems)
    if not rows:
        raise DatasetError(str(path), "no rows below the header", "add one line per pair")
    return header, rows


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


def named_files(table: PairTable, rows: Iterable[PairRow]) -> Iterator[tuple[PairRow, Path]]:
    """Every image file that the rows name, each file once (with the first row that names it)."""
    seen: set[Path] = set()
    for row in rows:
        goldens: Sequence[Path] = ()
        if table.layout.num_golden == 1:
            goldens = table.golden_files(row)
        else:
            for name in table.golden_names(row):
                goldens = (*goldens, *table.layout.files(table.images_dir, row.golden_path, name))
        for path in (*table.test_files(row), *goldens):
            if path not in seen:
                seen.add(path)
                yield row, path
