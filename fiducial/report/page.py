"""The page: a title, sections one below the other, data and scripts, all in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fiducial.report.markup import Html, embedded_json, tag
from fiducial.report.style import SCRIPT, STYLE

__all__ = ["Page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'"
"""Even a mistake in a section cannot make the page ask the network for something."""


class Page:
    """Collects sections; ``write`` makes one HTML file of them."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[Html] = []
        self._links: list[Html] = []
        self._tail: list[Html] = []

    def add(self, title: str, *blocks: str, intro: str = "") -> Page:
        """A section with a heading, which the page's menu links to. Plain strings among ``blocks`` are escaped."""
        anchor = f"section-{len(self._sections) + 1}"
        lead = [tag("p", intro, class_="intro")] if intro else []
        self._sections.append(tag("section", tag("h2", title), *lead, *blocks, id=anchor))
        self._links.append(tag("a", title, href=f"#{anchor}"))
        return self

    def add_data(self, element_id: str, value: Any) -> Page:
        """Plain data for a script: ``fiducial.data(element_id)``."""
        self._tail.append(embedded_json(element_id, value))
        return self

    def add_script(self, source: str) -> Page:
        """JavaScript of the program (never of the user), run after the page is built.

        Raises: ValueError when the source would end its own element.
        """
        if "</script" in source.lower() or "<!--" in source:
            raise ValueError("a script must not contain '</script' or '<!--'")
        self._tail.append(Html(f"<script>{source}</script>"))
        return self

    def html(self) -> str:
        """The whole file."""
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", self.title),
            Html(f"<style>{STYLE}</style>"),
        )
        header = tag("header", tag("h1", self.title), tag("p", self.subtitle, class_="subtitle"))
        menu = tag("nav", *self._links, aria_label="Sections")
        main = tag("main", *self._sections)
        body = tag("body", header, menu, main, Html(f"<script>{SCRIPT}</script>"), *self._tail)
        return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"

    def write(self, path: Path) -> None:
        """Write the file, replacing an older one in one step."""
        part = path.with_name(f".{path.name}.part")
        part.write_text(self.html(), encoding="utf-8", errors="backslashreplace")  # names may be no text
        os.replace(part, path)
