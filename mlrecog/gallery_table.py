"""The table of a gallery: whose picture each row is. A CSV file that spreadsheets open. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fiducial.errors import DatasetError, Problem

__all__ = ["Entry", "check_entries", "guarded", "now", "read_table", "table_bytes", "unguarded"]

_HEADER = ("row", "label", "source", "sha256", "added")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
"""What a spreadsheet may take for the beginning of a formula; and what marks a text that is none."""
_LONGEST = 4096
"""Characters of a label or source."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of a gallery: its class, where it comes from, the SHA-256 of its file ("" unknown), when it came."""

    label: str
    source: str
    sha256: str = ""
    added: str = ""


def now() -> str:
    """The time, as the table has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_entries(entries: Iterable[Entry], where: str) -> None:
    """Raises: DatasetError for labels and sources that a table cannot hold."""
    if problems := list(_wrong(entries, where)):
        raise DatasetError.of(problems)


def _wrong(entries: Iterable[Entry], where: str) -> Iterator[Problem]:
    for entry in entries:
        for name in ("label", "source"):
            value = getattr(entry, name)
            if not value.strip():
                yield Problem(where, f"an empty {name} ({entry.source!r})", f"give every picture a {name}")
            elif len(value) > _LONGEST:
                yield Problem(where, f"a {name} of {len(value)} characters", f"at most {_LONGEST} are kept")
            elif not value.isprintable() and ("\0" in value or not _is_unicode(value)):
                yield Problem(where, f"the {name} {value!r} is no text", "rename the file or its folder")


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a file's name in no encoding
        return False
    return True


def table_bytes(entries: Sequence[Entry]) -> bytes:
    """The CSV file: UTF-8 with the mark by which Excel knows it; texts that look like formulas begin with ``'``."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_HEADER)
    for row, entry in enumerate(entries):
        writer.writerow((row, *(guarded(text) for text in (entry.label, entry.source, entry.sha256, entry.added))))
    return file.getvalue().encode("utf-8-sig")


def read_table(data: bytes, where: str) -> tuple[Entry, ...]:
    """The entries of a CSV file that :func:`table_bytes` wrote. Raises: DatasetError for another."""
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        if tuple(next(rows, ())) != _HEADER:
            raise ValueError(f"its first line is not {','.join(_HEADER)}")
        return tuple(_entry(number, cells) for number, cells in enumerate(rows))
    except (csv.Error, ValueError) as error:
        raise DatasetError(where, f"is no gallery's table ({error})", "copy the gallery again") from None


def _entry(number: int, cells: list[str]) -> Entry:
    if len(cells) != len(_HEADER) or cells[0] != str(number):
        raise ValueError(f"row {number} is not in its place, or has not {len(_HEADER)} cells")
    return Entry(*map(unguarded, cells[1:]))


def guarded(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def unguarded(cell: str) -> str:
    """The text of a cell that :func:`guarded` made."""
    return cell.removeprefix("'")
