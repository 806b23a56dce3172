"""Parallel coordinates: one upright scale for each number, one thread through all of them for each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fiducial.report.markup import Html, tag

__all__ = ["Scale", "Thread", "parallel"]

_HEIGHT, _TOP, _BOTTOM, _SIDE = 340, 26, 42, 70
_STEP = 130
"""Pixels between two scales."""


@dataclass(frozen=True)
class Scale:
    """One upright scale: what its ends (and other places, 0 below to 1 above) are called."""

    name: str
    marks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Thread:
    """One item: its place on each scale (None: nowhere), its colour in the page's palette, a hint."""

    places: Sequence[float | None]
    colour: str = "c1"
    hint: str = ""


def parallel(title: str, scales: Sequence[Scale], threads: Sequence[Thread]) -> Html:
    """The chart; later threads lie on top. Raises: ValueError where a thread has not a place for each scale."""
    if any(len(thread.places) != len(scales) for thread in threads):
        raise ValueError(f"every thread needs {len(scales)} places")
    width = 2 * _SIDE + _STEP * max(1, len(scales) - 1)
    parts = []
    for index, scale in enumerate(scales):
        x = _SIDE + index * _STEP
        parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="axis"))
        parts.append(tag("text", _short(scale.name), tag("title", scale.name), x=x, y=_HEIGHT - 8,
                         text_anchor="middle", class_="label"))  # fmt: skip
        parts += [tag("text", text, x=x + 5, y=_y(place) - 4) for place, text in scale.marks]
    lines = [_line(thread) for thread in threads]
    svg = tag("svg", *lines, *parts, viewBox=f"0 0 {width} {_HEIGHT}", role="img", aria_label=title,
              style=f"min-width: {width}px")  # fmt: skip
    return tag("figure", tag("figcaption", title), tag("div", svg, class_="scroll"), class_="chart")


def _line(thread: Thread) -> Html:
    points = [f"{_SIDE + index * _STEP} {_y(place)}" for index, place in enumerate(thread.places) if place is not None]
    path = tag("path", d=f"M{'L'.join(points)}", class_=f"line {thread.colour}") if points else ""
    return tag("g", tag("title", thread.hint), path)


def _y(place: float) -> float:
    return round(_TOP + (1 - place) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _short(name: str) -> str:
    leaf = name.rpartition(".")[2]
    return leaf if len(leaf) <= 18 else f"{leaf[:17]}…"
