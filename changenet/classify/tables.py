"""Reading a CSV that somebody else wrote: every cell as the text it is, and every oddity named with its line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fiducial.data.text import read_text
from fiducial.errors import DatasetError, Problem

__all__ = ["Table", "TableRow", "read_table"]

_CLOSE = "close it, or double a quote that is part of the text"
_FIX = "save it as comma-separated UTF-8"
_DIFFERENT = 1024
"""Cells of a column that are remembered."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: the line where it begins, from 1, the header included; and its cells by their column."""

    line: int
    fields: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A header and its rows, at least one."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def read_table(path: Path, *, needed: Sequence[str], one_line: Collection[str] = ()) -> Table:
    """The table at ``path``. Columns of ``needed`` must be there; cells of ``one_line`` hold no line break.

    Blank lines, and rows of empty cells, are left out. Columns without a name are called ``Unnamed: 4`` by their place
    from 0, as pandas does.

    Raises: DatasetError naming the file and the lines, all of them: for what is no UTF-8 text, columns that are missing
        or there twice, rows of another length, a quote that is not closed, and a table without rows.
    """
    lines = list(io.StringIO(read_text(path, kind="CSV", fix=_FIX), newline=""))
    records = _Records(path, lines)
    header = next(records, (1, []))[1]
    if records.is_open_quote or any("\n" in cell or "\r" in cell for cell in header):
        raise DatasetError(f"{path}:1", "a quote that is opened in line 1 and not closed", _CLOSE)
    columns = tuple(cell.strip() or f"Unnamed: {place}" for place, cell in enumerate(header))
    _check_header(path, header, columns, needed)
    rows: list[TableRow] = []
    problems: list[Problem] = []
    known: dict[str, dict[str, str]] = {name: {} for name in columns}
    for line, cells in records:
        where = f"{path}:{line}"
        if not any(cells):
            continue
        fields = {name: _shared(known[name], cell) for name, cell in zip(columns, cells, strict=False)}
        broken = [name for name, cell in fields.items() if name in one_line and ("\n" in cell or "\r" in cell)]
        if records.is_open_quote or broken:
            found = (
                f"a quote that is opened in line {line} and not closed"
                if records.is_open_quote
                else (f"a line break in {broken[0]}: a quote that is not closed where it should be")
            )
            problems.append(Problem(where, found, _CLOSE))
        elif len(cells) != len(columns):
            found = f"{len(cells)} values for {len(columns)} columns"
            problems.append(Problem(where, found, "mend the line (quote values that hold commas)"))
        else:
            rows.append(TableRow(line, fields))
    if problems:
        raise DatasetError.of(problems)
    if not rows:
        raise DatasetError(str(path), "no rows below the header", "add one line per row")
    return Table(columns, tuple(rows))


def _shared(known: dict[str, str], cell: str) -> str:
    """A cell, in memory once however often its column has it: folders and labels repeat, names do not."""
    return known.setdefault(cell, cell) if len(known) < _DIFFERENT else known.get(cell, cell)


class _Records(Iterator[tuple[int, list[str]]]):
    """The records of a CSV, each with the line where it begins."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path, self.lines, self.reader = path, lines, csv.reader(lines)
        self.first = 1

    def __next__(self) -> tuple[int, list[str]]:
        self.first = self.reader.line_num + 1
        try:
            return self.first, next(self.reader)
        except csv.Error as error:
            found = f"cannot be read as CSV: {error}; a quote that is opened in line {self.first} may not be closed"
            raise DatasetError(f"{self.path}:{self.first}", found, _FIX) from None

    @property
    def is_open_quote(self) -> bool:
        """Whether the latest record ends with the file, within quotes: the reader takes all the rest for one cell."""
        if self.reader.line_num < len(self.lines):
            return False
        try:
            list(csv.reader(self.lines[self.first - 1 :], strict=True))
        except csv.Error as error:
            return "unexpected end" in str(error)
        return False


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str], needed: Sequence[str]) -> None:
    where = f"{path}:1"
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        places = ", ".join(str(place + 1) for place, name in enumerate(columns) if name == twice[0])
        found = f"column {twice[0]!r} is there {columns.count(twice[0])} times (columns {places})"
        raise DatasetError(where, found, "a duplicate column hides the other: remove or rename all but one")
    if lacking := [name for name in needed if name not in columns]:
        separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
        wanted = f"name the columns {', '.join(needed)}"
        shown = ", ".join(header) if any(header) else "empty"
        raise DatasetError(
            where,
            f"no column {', '.join(lacking)}; the header is {shown[:300]}",
            f"separate columns with commas, not {separator!r}" if separator else wanted,
        )
