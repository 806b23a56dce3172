"""What shows only when rows are compared: with each other, with those of another split, a picture with its golden."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock

import numpy as np

from changenet.classify.rows import PairRow, PairTable
from fiducial.data.checks import Contents, Entry, check_overlap, same_contents, spread
from fiducial.data.images import READ_AS, read_rgb
from fiducial.data.looks import Look, Wrong, look_at
from fiducial.data.registration import shift_between
from fiducial.errors import Problem

__all__ = ["check_boards", "check_itself", "check_registration", "check_repeated_rows", "check_splits"]

MAX_SHIFT = 3.0
"""Pixels that a test image may lie beside its golden before ``check`` warns."""
REGISTERED_ROWS = 64
"""Rows whose registration ``check`` measures, spread evenly over a split."""
_SHOWN_LINES = 3


def check_repeated_rows(table: PairTable) -> Iterator[Problem]:
    """Rows that compare the same files as an earlier one; worst where one says PASS and the other a defect."""
    first: dict[tuple[str, str, str], PairRow] = {}
    same: list[tuple[PairRow, PairRow]] = []
    normal = cache(lambda path: str(PurePosixPath(path)))
    for row in table.rows:
        key = normal(row.input_path), normal(row.golden_path), row.object_name
        if (earlier := first.setdefault(key, row)) is not row:
            same.append((earlier, row))
    against = [pair for pair in same if pair[0].label != pair[1].label]
    if against:
        found = (
            f"{len(against)} rows contradict an earlier row of the same images: {_pairs_of_lines(against, labels=True)}"
        )
        yield Problem(table.where(against[0][1]), found, "keep the row that is right", "warning")
    if same := [pair for pair in same if pair[0].label == pair[1].label]:
        found = f"{len(same)} rows repeat an earlier row: {_pairs_of_lines(same)}"
        yield Problem(table.where(same[0][1]), found, "each counts as often as it is listed", "warning")


def check_itself(table: PairTable) -> Iterator[Problem]:
    """Rows whose test image is its own golden: whatever the part looks like, nothing differs."""
    if table.layout.num_golden > 1:
        return
    folder = str(table.images_dir)
    normal = cache(lambda path: os.path.normpath(os.path.join(folder, path)))
    rows = [row for row in table.rows if normal(row.input_path) == normal(row.golden_path)]
    if rows:
        found = f"{len(rows)} rows compare an image with itself (first: {rows[0].input_path}, {rows[0].object_name})"
        yield Problem(table.where(rows[0]), found, "golden_path names the folder of the goldens", "warning")


def _pairs_of_lines(pairs: list[tuple[PairRow, PairRow]], *, labels: bool = False) -> str:
    def told(row: PairRow) -> str:
        return f"{row.line} {row.fields['label']}" if labels else f"{row.line}"

    shown = [f"lines {told(earlier)} and {told(later)}" for earlier, later in pairs[:_SHOWN_LINES]]
    return ", ".join(shown) + (", …" if len(pairs) > _SHOWN_LINES else "")


def check_boards(train: PairTable, other: PairTable) -> Iterator[Problem]:
    """Folders of test images that training and another split share, where folders seem to be boards or lots."""
    trained, others = _folders(train), _folders(other)
    shared = [folder for folder in others if folder in trained]
    if shared and len(trained | others) > 1:
        row = others[shared[0]]
        found = f"{len(shared)} of {len(others)} folders of input_path are trained on too (first: {row.input_path})"
        fix = "if a folder is a board or a lot, split by it: parts of one board are too alike"
        yield Problem(other.where(row), found, fix, "warning")


def _folders(table: PairTable) -> dict[str, PairRow]:
    """The first row of each folder of test images."""
    first: dict[str, PairRow] = {}
    for row in table.rows:
        first.setdefault(row.input_path, row)
    return {os.path.normpath(table.images_dir / path): row for path, row in first.items()}


def check_splits(train: PairTable, other: PairTable) -> Iterator[Problem]:
    """Test images of another split that are trained on, whatever they are called."""
    return check_overlap(*same_contents(_test_images(train), _test_images(other)), "the same image as {where}")


def _test_images(table: PairTable) -> Contents[PairRow]:
    return Contents(
        table.rows,
        lambda row: table.layout.paths(*table.test_image(row)),
        lambda row, key: Entry(table.where(row), row.object_name, key),
    )


def check_registration(table: PairTable) -> Iterator[Problem]:
    """Rows whose test image lies beside its golden, by phase correlation of the first light."""
    if table.layout.num_golden > 1:
        return
    far: list[tuple[float, PairRow]] = []
    looked_at = spread(table.rows, REGISTERED_ROWS)
    pairs = [(table.golden_files(row)[0], table.test_files(row)[0]) for row in looked_at]
    for row, distance in zip(looked_at, look_at(_DISTANCE, pairs), strict=True):
        if not isinstance(distance, Wrong) and distance > MAX_SHIFT:  # the check of the files names what is wrong
            far.append((distance, row))
    far.sort(key=lambda item: -item[0])
    if far:
        worst = ", ".join(f"line {row.line} by {pixels:.1f}" for pixels, row in far[:3])
        share = f"{len(far)} of {len(looked_at)} test images"
        found = f"{share} lie more than {MAX_SHIFT:g} pixels beside their golden ({worst})"
        fix = "set dataset.classify.align: shift, or register the images"
        yield Problem(str(table.csv_path), found, fix, "warning")


_one_at_a_time = Lock()
"""The transforms of a large photograph take hundreds of megabytes."""


def _distance(golden_path: Path, test_path: Path) -> float:
    """How far a test image lies beside its golden, in pixels, in rows or columns."""
    with _one_at_a_time:
        golden, test = (read_rgb(path).convert("L") for path in (golden_path, test_path))
        if golden.size != test.size:
            test = test.resize(golden.size)
        dy, dx = shift_between(np.asarray(golden, dtype=np.float32), np.asarray(test, dtype=np.float32))
    return float(max(abs(dy), abs(dx)))


_DISTANCE: Look[float] = Look(f"{READ_AS}, distance 1", _distance, float, float)
"""Of a golden and the test image beside it; kept until one of the files changes."""
