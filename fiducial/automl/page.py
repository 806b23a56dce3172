"""``report.html`` of a search: how it went, what mattered, and every training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from fiducial.automl.record import Record, Row
from fiducial.automl.table import lines_of
from fiducial.report import (
    Cell,
    Html,
    Line,
    Page,
    Scale,
    Thread,
    Tile,
    columns,
    facts,
    line_chart,
    note,
    number,
    parallel,
    table,
    tiles,
)

__all__ = ["write_page"]

_CURVES = 40
"""Learning curves that are drawn: the best ones."""


def write_page(record: Record, folder: Path) -> Path:
    """Write the page; returns its path."""
    page = Page(f"Search: {record.title}", f"{record.algorithm}, {record.metric} ({record.direction}), {folder}")
    page.add("Result", *_result(record))
    page.add("History", columns(_history(record), _curves(record)))
    if (varied := _varied(record)) and any(row.curve or row.value is not None for row in record.rows):
        intro = "Every training that reports a number: the best in blue, others that are finished in green."
        page.add("Values", _parallel(record, varied), intro=intro)
    if record.importances:
        rows = [(name, share) for name, share in record.importances.items()]
        intro = "How much of the differences between the trainings that went to the end each value explains."
        page.add("What mattered", table(("Key", "Share"), rows), intro=intro)
    page.add("Trainings", _trainings(record))
    page.add("Searched", *_space(record))
    path = folder / "report.html"
    page.write(path)
    return path


def _result(record: Record) -> list[Html]:
    best, own = record.winner, next((row for row in record.rows if row.own and row.value is not None), None)
    if best is None:
        return [note("No training has gone to its end yet.", tone="bad")]
    gain = "" if own is None or own.value is None else f"yours: {number(own.value)}"
    shown = [
        Tile(record.metric, number(best.value), gain, tone="good"),
        Tile("Best training", str(best.number), "the values of the spec" if best.own else ""),
        Tile("Epochs", number(record.spent), lines_of(record)[1]),
        *(
            Tile(name, number(value), record.evaluated_on)
            for name, value in record.evaluation.items()
            if _is_number(value)
        ),
    ]
    changes = {key: _told(value) for key, value in best.values.items()}
    return [tiles(shown), facts(changes), note("best_spec.yaml trains this model by itself.")]


def _history(record: Record) -> Html:
    rows = [row for row in record.rows if row.value is not None]
    sign = 1 if record.direction == "minimize" else -1
    best: list[float] = []
    for row in rows:
        value = sign * float(row.value or 0)
        best.append(min(value, best[-1]) if best else value)
    if not rows:
        return note("No training has gone to its end yet.")
    x = [float(row.number) for row in rows]
    lines = [
        Line("best so far", x, [sign * value for value in best], colour="good"),
        Line("trainings", x, [float(row.value or 0) for row in rows], colour="c3", dashed=True),
    ]
    return line_chart("Best so far", lines, x_label="training", y_label=record.metric)


def _curves(record: Record) -> Html:
    sign = 1 if record.direction == "minimize" else -1
    rows = sorted((row for row in record.rows if row.curve), key=lambda row: (-row.epochs, sign * row.curve[-1][1]))
    lines = [
        Line(
            f"{row.number}{' (best)' if row.number == record.best else ' (yours)' if row.own else ''}",
            [epoch for epoch, _ in row.curve],
            [value for _, value in row.curve],
            colour="good" if row.number == record.best else "c2" if row.own else "muted",
            dashed=row.state == "ended early",
        )
        for row in reversed(rows[:_CURVES])
    ]
    if not lines:
        return note("No validation yet.")
    return line_chart("Learning curves", lines, x_label="epoch", y_label=record.metric)


def _varied(record: Record) -> list[str]:
    return [name for name in record.headings if len({str(row.values.get(name)) for row in record.rows}) > 1]


def _parallel(record: Record, names: Sequence[str]) -> Html:
    rows = [row for row in record.rows if row.curve or row.value is not None]
    scores = [row.value if row.value is not None else row.curve[-1][1] for row in rows]
    columns_of = [_scale(name, [row.values.get(name) for row in rows]) for name in names]
    columns_of.append(_scale(record.metric, scores))
    threads = [
        Thread(
            [places[index] for _, places in columns_of],
            "good" if row.number == record.best else "muted" if row.state != "finished" else "c3",
            f"training {row.number}: {number(score)}",
        )
        for index, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]
    threads.sort(key=lambda thread: {"muted": 0, "c3": 1, "good": 2}[thread.colour])
    return parallel("Values and what they came to", [scale for scale, _ in columns_of], threads)


def _scale(name: str, values: Sequence[Any]) -> tuple[Scale, list[float | None]]:
    if all(_is_number(value) for value in values):
        low, high = min(values), max(values)
        if low == high:
            return Scale(name, [(0.5, number(low))]), [0.5] * len(values)
        if low > 0 and high / low >= 30:
            from math import log

            places = [(log(v) - log(low)) / (log(high) - log(low)) for v in values]
        else:
            places = [(v - low) / (high - low) for v in values]
        return Scale(name, [(0.0, number(low)), (1.0, number(high))]), list(places)
    known = sorted({_told(value) for value in values if value is not None})
    at = {text: index / max(1, len(known) - 1) for index, text in enumerate(known)}
    marks = [(place, text) for text, place in at.items()]
    return Scale(name, marks), [None if value is None else at[_told(value)] for value in values]


def _trainings(record: Record) -> Html:
    names = _varied(record)
    head = ("Training", "State", record.metric, "Epochs", "Best epoch", *(record.headings[name] for name in names))
    return table(head, [_cells(row, record, names) for row in record.rows], sortable=True)


def _cells(row: Row, record: Record, names: Sequence[str]) -> list[str | float | Cell | None]:
    title = f"{row.number}{' best' if row.number == record.best else ''}{' yours' if row.own else ''}"
    values = [row.values.get(name) for name in names]
    shown: list[str | float] = [value if _is_number(value) else _told(value) for value in values]
    state = Cell(row.state, None, row.failure[:120]) if row.failure else row.state
    return [Cell(title, row.number), state, row.value, float(row.epochs), row.best_epoch, *shown]


def _space(record: Record) -> list[Html]:
    rows = [(entry["key"], entry["range"], entry["rule"]) for entry in record.space]
    blocks = [table(("Key", "Range", "From"), rows)]
    if record.left_out:
        blocks.append(table(("Not searched", "Why"), list(record.left_out.items())))
    return [*blocks, *(note(text) for text in record.notes)]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else str(value)
