"""Safe HTML: plain strings are escaped, :class:`Html` is not. Everything else in the package builds on ``tag``."""

from __future__ import annotations

import html
import json
import math
from typing import Any

__all__ = ["DASH", "Html", "embedded_json", "number", "percent", "rate", "tag"]

DASH = "–"
"""Shown for a value that is not defined."""

_VOID = {"br", "circle", "img", "input", "line", "meta", "path", "rect"}


class Html(str):
    """Markup that is finished: it is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """``<name attributes>children</name>``.

    In attribute names a trailing ``_`` falls away and other ``_`` become ``-`` (``class_``, ``data_x``). None and False
    leave the attribute out, True makes it a bare one.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{html.escape(str(value))}"')
    opening = " ".join(parts)
    if name in _VOID:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{''.join(_safe(child) for child in children)}</{name}>")


def embedded_json(element_id: str, value: Any) -> Html:
    """A JSON block that a script of the page reads by its id; no text in it can end the block."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{html.escape(element_id)}">{text}</script>')


def number(value: float | None, digits: int = 4) -> str:
    """At most ``digits`` significant digits, thousands of whole numbers set apart, a dash for None and NaN."""
    if value is None or math.isnan(value):
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def percent(fraction: float | None) -> str:
    """A fraction 0..1 as ``12.50 %``; a dash for None."""
    return DASH if fraction is None else f"{100 * fraction:.2f}\u202f%"


def rate(fraction: float | None, decimals: int = 4) -> str:
    """A fraction 0..1 with all its decimals, so that columns line up; a dash for None."""
    return DASH if fraction is None else f"{fraction:.{decimals}f}"


def _safe(child: str) -> str:
    return child if isinstance(child, Html) else html.escape(child)
