"""What a section is made of, charts apart: tables, tiles, facts, notes and a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fiducial.report.markup import DASH, Html, number, tag

__all__ = ["Cell", "Picture", "Tile", "columns", "copy_line", "facts", "gallery", "note", "table", "tiles"]


@dataclass(frozen=True)
class Cell:
    """A table cell that shows ``text`` and sorts by ``sort`` (None sorts last)."""

    text: str
    sort: float | None
    hint: str = ""


@dataclass(frozen=True)
class Tile:
    """One large number. ``tone`` colours it: ``good``, ``bad`` or nothing; a script finds it by ``id``."""

    label: str
    value: str
    hint: str = ""
    tone: str = ""
    id: str | None = None


@dataclass(frozen=True)
class Picture:
    """One gallery entry: images side by side, a headline with a badge, and facts below.

    ``images`` maps captions to data URIs; ``data`` becomes ``data-*`` attributes for scripts; ``problem`` is shown in
    place of images that could not be read.
    """

    headline: str
    images: Mapping[str, str]
    facts: Mapping[str, str]
    badge: str = ""
    tone: str = ""
    problem: str = ""
    data: Mapping[str, object] = field(default_factory=dict)


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | float | Cell | None]], *, sortable: bool = False
) -> Html:
    """A table; numbers are right-aligned, None is a dash. ``sortable``: a click on a heading sorts by it."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"every row needs {len(header)} cells")
    numeric = [any(not isinstance(row[i], str | None) for row in rows) for i in range(len(header))]
    heads = [
        tag(
            "th",
            tag("button", title, type="button") if sortable else title,
            scope="col",
            class_="num" if right else None,
        )
        for title, right in zip(header, numeric, strict=True)
    ]
    body = [tag("tr", *(_cell(cell, right) for cell, right in zip(row, numeric, strict=True))) for row in rows]
    grid = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="sortable" if sortable else None)
    return tag("div", grid, class_="scroll")


def tiles(items: Sequence[Tile]) -> Html:
    """Large numbers in a row."""
    return tag("div", *(_tile(item) for item in items), class_="tiles")


def facts(items: Mapping[str, object]) -> Html:
    """Names and values, one pair a line."""
    pairs = [part for name, value in items.items() for part in (tag("dt", name), tag("dd", _plain(value)))]
    return tag("dl", *pairs, class_="facts")


def note(*content: str, tone: str = "") -> Html:
    """A paragraph that stands out; ``tone`` is ``good``, ``bad`` or nothing."""
    return tag("p", *content, class_=f"note {tone}".strip())


def columns(*blocks: str) -> Html:
    """Blocks side by side where there is room."""
    return tag("div", *(tag("div", block, class_="card") for block in blocks), class_="columns")


def copy_line(label: str, text: str, *, id: str) -> Html:
    """A line of text with a button that copies it."""
    button = tag("button", "Copy", type="button", class_="copy", data_copy=id, aria_label=f"Copy: {label}")
    return tag("div", tag("span", label), tag("code", text, id=id), button, class_="copyline")


def gallery(pictures: Sequence[Picture], *, wide: bool = False) -> Html:
    """Cards of images. ``wide``: two in a row at most, for images whose details matter."""
    return tag("div", *(_card(picture) for picture in pictures), class_="gallery wide" if wide else "gallery")


def _cell(cell: str | float | Cell | None, right: bool) -> Html:
    align = "num" if right else None
    if isinstance(cell, Cell):
        hint = [tag("small", cell.hint)] if cell.hint else []
        return tag("td", cell.text, *hint, class_=align, data_sort="" if cell.sort is None else cell.sort)
    if isinstance(cell, str):
        return tag("td", cell, class_=align)
    return tag("td", number(cell), class_=align, data_sort="" if cell is None else cell)


def _tile(tile: Tile) -> Html:
    value = tag("strong", tile.value, id=tile.id, class_=tile.tone or None)
    hint = tag("small", tile.hint, id=tile.id and f"{tile.id}-hint")
    return tag("div", tag("span", tile.label), value, hint, class_="tile")


def _card(picture: Picture) -> Html:
    figures = [
        tag("figure", tag("img", src=source, alt=f"{picture.headline}: {caption}"), tag("figcaption", caption))
        for caption, source in picture.images.items()
    ]
    images = tag("div", *figures, class_="images") if figures else note(picture.problem, tone="bad")
    badge = tag("span", picture.badge, class_=f"badge {picture.tone}".strip())
    head = tag("h3", tag("span", picture.headline), badge)
    data = {f"data_{name}": value for name, value in picture.data.items()}
    return tag("article", head, images, facts(picture.facts), class_="card", **data)


def _plain(value: object) -> str:
    if value is None or value == "":
        return DASH
    return value if isinstance(value, str) else number(value) if isinstance(value, float) else str(value)
