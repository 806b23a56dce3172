"""What a row more costs: little memory, and a second look at a data set opens none of its files.

The benchmark of growth measures the same with many rows, and times it.
"""

import gc
import os
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "bench"))

import growth

from fiducial.data import threads
from mal import average_precision

FEW, MANY = 60, 180
MOST = 2500
"""Bytes of a row: 2 kB, and what so few rows do not share. Above is what grows by mistake."""
LISTS = {"train, until the first batch": 2}
"""Works that read more than one list of rows, here the same for training and validation, and how many."""
MEASURED = ("check again", "train, until the first batch", "evaluate: numbers")

_opened: list[str] | None = None


def _listen(event, arguments):
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_listen)  # which nobody can take away again


@contextmanager
def opened():
    """The files that are opened within, by any thread, whoever opens them."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture(params=list(growth.NETWORKS))
def works(request, tmp_path, monkeypatch):
    """``works(rows)``: what is done for so many rows of new files, with nothing kept of them, and their folder."""
    monkeypatch.setenv("FIDUCIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(growth.kept, "SETTLED_NS", -1)
    monkeypatch.setattr(average_precision, "_AT_ONCE", FEW // 2)  # what is held of some rows is held of FEW, too
    monkeypatch.setattr(threads, "_MOST", 1)

    def of(rows):
        folder = tmp_path / str(rows)
        folder.mkdir()
        return folder, growth.NETWORKS[request.param](folder, rows)

    return of


def test_a_second_look_opens_no_file(works):
    folder, each = works(FEW)
    first, again = next(each), next(each)
    assert (first.name, again.name) == ("check, the first", "check again")
    pictures = {str(path) for path in folder.rglob("*") if path.suffix in (".png", ".jpg")}
    with opened() as before:
        first.run()
    assert len(pictures.intersection(before)) >= FEW / 2
    with opened() as after:
        report = again.run()
    assert sorted(pictures.intersection(after)) == []
    assert not [problem for problem in report.problems if problem.level == "error"]


def test_a_row_takes_little_memory(works):
    peaks = {}
    for rows in (FEW, FEW + 1, MANY):  # the first time imports and fills what is held once
        for work in works(rows)[1]:
            if rows == FEW or work.name not in MEASURED:
                work.run()
            else:
                peaks[work.name, rows] = _peak(work.run)
            if work.name == MEASURED[-1]:
                break
    for name in MEASURED:
        of_a_row = (peaks[name, MANY] - peaks[name, FEW + 1]) / (MANY - FEW - 1)
        assert of_a_row < MOST * LISTS.get(name, 1), f"{name}: {of_a_row:.0f} bytes of a row"


def _peak(run):
    """Bytes that Python and numpy hold at most while something runs, beyond what they held before."""
    gc.collect()
    tracemalloc.start()
    try:
        found = run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del found
    return peak
