"""Charts as plain SVG, drawn here: they take the page's colours, need no library and stay sharp when printed.

Each ``svg`` carries its scales (``data-x`` and ``data-y``: low, high, pixel of low, pixel of high), so that a script
can move a cursor or a dot: ``fiducial.place(id, x, y)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiducial.report.markup import Html, number, tag

__all__ = ["Cursor", "Dot", "Line", "histogram", "line_chart", "scatter"]

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 44
_MAX_POINTS = 600  # more cannot be seen at this width


@dataclass(frozen=True)
class Line:
    """A series. ``colour`` is a name of the page's palette: ``c1`` .. ``c6``, ``good``, ``bad``, ``muted``."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Cursor:
    """A vertical line at ``x``, which a script can move."""

    id: str
    x: float
    label: str = ""


@dataclass(frozen=True)
class Dot:
    """A point, which a script can move."""

    id: str
    x: float
    y: float


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def pixel(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Round values (1, 2 or 5 times a power of ten) inside the range, some five of them."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "",
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    cursors: Sequence[Cursor] = (),
    dots: Sequence[Dot] = (),
    id: str | None = None,
) -> Html:
    """Lines through points. Points that are not finite are left out; ranges default to the data's.

    Raises: ValueError when a line's x and y differ in length.
    """
    kept = [_finite(line) for line in lines]
    x_axis, y_axis = _axes(x_range or _span([x for x, _ in kept]), y_range or _span([y for _, y in kept]))
    colours = [line.colour or f"c{i % 6 + 1}" for i, line in enumerate(lines)]
    paths = []
    for line, colour, (x, y) in zip(lines, colours, kept, strict=True):
        dash = "6 5" if line.dashed else None
        style = {"class_": f"line {colour}", "stroke_dasharray": dash}
        points = [f"{x_axis.pixel(a)} {y_axis.pixel(b)}" for a, b in zip(x, y, strict=True)]
        if len(points) == 1:
            a, b = points[0].split()
            paths.append(tag("circle", cx=a, cy=b, r=3.5, class_=f"dot {colour}"))
        elif points:
            paths.append(tag("path", d=f"M{'L'.join(points)}", **style))
    legend = [(line.name, colour) for line, colour in zip(lines, colours, strict=True)]
    marks = _marks(x_axis, y_axis, cursors, dots)
    return _figure(title, x_axis, y_axis, x_label, y_label, [*paths, *marks], legend, id)


def scatter(
    title: str,
    groups: Mapping[str, tuple[Sequence[float] | NDArray[Any], Sequence[float] | NDArray[Any]]],
    *,
    x_label: str = "",
    y_label: str = "",
) -> Html:
    """Points ``(x, y)`` of some groups; a point shows its group. Of very many in one group some are left out."""
    kept = {name: _finite(Line(name, *points)) for name, points in groups.items()}  # type: ignore[arg-type]
    x_axis, y_axis = _axes(_span([x for x, _ in kept.values()]), _span([y for _, y in kept.values()]))
    points, legend = [], []
    for i, (name, (x, y)) in enumerate(kept.items()):
        colour = f"c{i % 6 + 1}"
        legend.append((name, colour))
        spots = [
            tag("circle", cx=x_axis.pixel(a), cy=y_axis.pixel(b), r=3, class_=f"dot {colour}")
            for a, b in zip(x, y, strict=True)
        ]
        points.append(tag("g", tag("title", name), *spots))
    return _figure(title, x_axis, y_axis, x_label, y_label, points, legend, None)


def histogram(
    title: str,
    groups: Mapping[str, Sequence[float] | NDArray[Any]],
    *,
    bins: int = 40,
    x_label: str = "",
    y_label: str = "% of its class",
    colours: Sequence[str] = (),
    cursors: Sequence[Cursor] = (),
    id: str | None = None,
) -> Html:
    """Bars over each other, each group in percent of itself, so that a rare one stays visible beside a common one."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in groups.items()}
    low, high = _span(list(arrays.values()))
    edges = np.linspace(low, high, bins + 1)
    counts = {name: np.histogram(values, edges)[0] for name, values in arrays.items()}
    shares = {name: 100 * count / max(1, count.sum()) for name, count in counts.items()}
    top = max((float(share.max()) for share in shares.values()), default=0.0) or 1.0
    x_axis, y_axis = _axes((low, high), (0.0, top * 1.05))
    bars, legend = [], []
    for i, (name, share) in enumerate(shares.items()):
        colour = colours[i] if i < len(colours) else f"c{i % 6 + 1}"
        legend.append((f"{name} ({number(len(arrays[name]))})", colour))
        for left, right, height, count in zip(edges[:-1], edges[1:], share, counts[name], strict=True):
            if count:
                x, y = x_axis.pixel(left), y_axis.pixel(height)
                hint = tag("title", f"{name}: {number(int(count))} in {number(left)} … {number(right)}")
                size = {"width": round(x_axis.pixel(right) - x, 2), "height": round(y_axis.start - y, 2)}
                bars.append(tag("g", hint, tag("rect", x=x, y=y, **size, class_=f"bar {colour}")))
    marks = _marks(x_axis, y_axis, cursors, ())
    return _figure(title, x_axis, y_axis, x_label, y_label, [*bars, *marks], legend, id)


def _finite(line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"line {line.name!r}: {len(x)} x for {len(y)} y")
    keep = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(keep) > _MAX_POINTS:
        keep = keep[np.linspace(0, len(keep) - 1, _MAX_POINTS).round().astype(int)]
    return x[keep], y[keep]


def _span(arrays: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Lowest and highest value, apart from each other; 0 is taken in when it is near."""
    values = np.concatenate([*arrays, np.empty(0)])
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if 0 < low < (high - low) / 2:
        low = 0.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> tuple[_Axis, _Axis]:
    return _Axis(*x_range, _LEFT, _WIDTH - _RIGHT), _Axis(*y_range, _HEIGHT - _BOTTOM, _TOP)


def _marks(x_axis: _Axis, y_axis: _Axis, cursors: Sequence[Cursor], dots: Sequence[Dot]) -> list[Html]:
    marks = []
    for cursor in cursors:
        rule = tag("line", x1=0, x2=0, y1=y_axis.end, y2=y_axis.start)
        text = tag("text", cursor.label, x=5, y=y_axis.end + 11)
        shift = f"translate({x_axis.pixel(min(max(cursor.x, x_axis.low), x_axis.high))} 0)"
        marks.append(tag("g", rule, text, id=cursor.id, class_="cursor", transform=shift))
    for dot in dots:
        shift = f"translate({x_axis.pixel(dot.x)} {y_axis.pixel(dot.y)})"
        marks.append(tag("g", tag("circle", r=6), id=dot.id, class_="marker", transform=shift))
    return marks


def _figure(
    title: str,
    x_axis: _Axis,
    y_axis: _Axis,
    x_label: str,
    y_label: str,
    content: Sequence[Html],
    legend: Sequence[tuple[str, str]],
    id: str | None,
) -> Html:
    grid = []
    for value in x_axis.ticks():
        x = x_axis.pixel(value)
        grid.append(tag("line", x1=x, x2=x, y1=y_axis.start, y2=y_axis.start + 4, class_="tick"))
        grid.append(tag("text", number(value), x=x, y=y_axis.start + 17, text_anchor="middle"))
    for value in y_axis.ticks():
        y = y_axis.pixel(value)
        grid.append(tag("line", x1=x_axis.start, x2=x_axis.end, y1=y, y2=y, class_="grid"))
        grid.append(tag("text", number(value), x=x_axis.start - 7, y=y + 4, text_anchor="end"))
    middle_x, middle_y = (x_axis.start + x_axis.end) / 2, (y_axis.start + y_axis.end) / 2
    labels = [
        tag("line", x1=x_axis.start, x2=x_axis.end, y1=y_axis.start, y2=y_axis.start, class_="axis"),
        tag("text", x_label, x=middle_x, y=_HEIGHT - 8, text_anchor="middle", class_="label"),
        tag("text", y_label, transform=f"translate(14 {middle_y}) rotate(-90)", text_anchor="middle", class_="label"),
    ]
    svg = tag(
        "svg",
        *grid,
        *content,
        *labels,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
        id=id,
        data_x=f"{x_axis.low} {x_axis.high} {x_axis.start} {x_axis.end}",
        data_y=f"{y_axis.low} {y_axis.high} {y_axis.start} {y_axis.end}",
    )
    keys = [tag("span", tag("i", class_=f"key {colour}"), name) for name, colour in legend]
    return tag("figure", tag("figcaption", title), svg, tag("div", *keys, class_="legend"), class_="chart")
