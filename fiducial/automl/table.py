"""A search in the console: a table that is drawn anew on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import IO

from fiducial.automl.record import Record, Row
from fiducial.progress import clock

__all__ = ["Live", "lines_of"]

_SHOWN_VALUES = 4
_SHOWN_ROWS = 20


def lines_of(record: Record, *, all_rows: bool = False) -> list[str]:
    """The table, best first among those that are over; long ones without the worst."""
    better = "lower" if record.direction == "minimize" else "higher"
    head = f"{record.title}: {record.algorithm}, {record.metric} ({better} is better)"
    over = sum(row.state not in ("running", "waiting") for row in record.rows)
    wanted = "" if record.trials is None else f" of {record.trials}"
    spent = f"{record.spent} epochs" + _saved(record)
    left = "" if record.finished or record.seconds_left is None else f", left about {clock(record.seconds_left)}"
    varied = list(record.headings)[:_SHOWN_VALUES]
    names = [record.headings[name] for name in varied]
    rows = _ordered(record)
    shown = rows if all_rows else rows[:_SHOWN_ROWS]
    cells = [["", "training", "state", "value", "epochs", *names]]
    for row in shown:
        values = [_short(row.values.get(name)) for name in varied]
        number = f"{row.number}{' (yours)' if row.own else ''}"
        cells.append(
            ["*" if row.number == record.best else "", number, row.state, _score(row), str(row.epochs), *values]
        )
    more = [f"… and {len(rows) - len(shown)} more"] if len(shown) < len(rows) else []
    if beyond := len(record.space) - len(varied):
        more.append(
            f"{beyond} more searched key{'s' if beyond > 1 else ''}: see study.json, and report.html at the end"
        )
    numbers = {name: value for name, value in record.evaluation.items() if isinstance(value, int | float)}
    verified = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
    tested = [f"the best on the {record.evaluated_on}: {verified}"] if verified else []
    return [head, f"{over}{wanted} trainings over, {spent}{left}", *_aligned(cells), *more, *tested]


def _saved(record: Record) -> str:
    over = [row for row in record.rows if row.state in ("finished", "ended early")]
    if any(row.parent is not None for row in over):
        return ""
    full, spent = record.epochs * len(over), record.trained(over)
    return f" ({100 * spent / full:.0f} % of what no early end would take)" if full and spent < full else ""


def _ordered(record: Record) -> list[Row]:
    sign = 1 if record.direction == "minimize" else -1
    rank = {"finished": 0, "running": 1, "waiting": 2, "ended early": 3, "failed": 4}
    return sorted(
        record.rows,
        key=lambda row: (rank[row.state], sign * row.value if row.value is not None else 0, -row.epochs, row.number),
    )


def _score(row: Row) -> str:
    if row.value is not None:
        return f"{row.value:.6g}"
    return f"({row.curve[-1][1]:.6g})" if row.curve else row.failure.partition(":")[0]


def _short(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


class Live:
    """Draws the table over the one before, where a person watches; else it keeps quiet."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.drawn = 0
        self.watched = self.stream.isatty()

    def draw(self, record: Record) -> None:
        """Show the table."""
        if not self.watched:
            return
        width = shutil.get_terminal_size().columns  # a line that wraps would be two
        lines = [line[: width - 1] for line in lines_of(record)]
        up = f"\033[{self.drawn}F" if self.drawn else ""
        self.stream.write(up + "".join(f"\033[2K{line}\n" for line in lines))
        self.stream.flush()
        self.drawn = len(lines)

    def interrupted(self) -> None:
        """Another line was printed below the table: the next one is drawn anew."""
        self.drawn = 0
