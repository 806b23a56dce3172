"""The reference of a network's spec keys, as Markdown: every key, its default, what it may be, and what it means."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fiducial.schemas.values import Placed, placed
from fiducial.spec.bounds import hard_bounds
from fiducial.spec.knob import Key, Section, plain
from fiducial.task import Task

__all__ = ["key_reference"]

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def key_reference(tasks: Sequence[Task[Any]], actions: Collection[str]) -> str:
    """One table for each section of the spec."""
    lines = [
        f"# Keys of {tasks[0].title}",
        "",
        f"Every key of a `{tasks[0].network}` spec, generated from its declarations by `{tasks[0].network} schema`. "
        "*Counts in* names the actions that read a key; nothing there: all. Values outside of the range end a run "
        "before it starts; keys marked with ° are this project's own, and stand in no spec of TAO's.",
        "",
        *_tables(tasks[0].spec_model(), actions),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _tables(kind: type[Section], actions: Collection[str]) -> Iterator[str]:
    tables: dict[str, list[str]] = {"": []}
    intros = {"": "Keys of the whole spec."}
    for found in placed(kind, actions):
        path = found.key.path
        if found.section is not None:
            inside = path if found.key.section else f"{path}[]"
            intros[inside] = found.key.meta.help if found.key.section else f"One entry of `{path}`."
            tables[inside] = []
        if found.key.section is None:
            rows = tables[path.rpartition(".")[0]]
            rows.append(_row(found.key, found))
            rows += [_row(item, found) for item in found.key.items()]
    for path, rows in tables.items():
        if rows:
            yield from ([f"## {path}", ""] if path else [])
            yield from (intros[path], "", "| Key | Default | Values | Counts in | Meaning |", "|---|---|---|---|---|")
            yield from (*rows, "")


def _row(key: Key, found: Placed) -> str:
    help = " ".join(key.meta.help.split())
    if key.meta.ignored:
        help = f"{help} No effect: {key.meta.ignored}."
    if key.meta.aliases:
        help = f"{help} Also read as {', '.join(f'`{alias}`' for alias in key.meta.aliases)}."
    name = f"`{key.path.rpartition('.')[2]}`{'°' if found.own else ''}"
    cells = (name, _default(key), _values(key), ", ".join(found.actions), help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(key: Key) -> str:
    value = plain(key.default)
    shown = "" if value in (None, "", [], {}) else f"`{_text(value)}`"
    if key.meta.has_template and plain(key.meta.template) not in (value, "", "???"):
        shown += f" (in templates `{_text(plain(key.meta.template))}`)"
    return shown


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else f"{value}"


def _values(key: Key) -> str:
    if key.options:
        return ", ".join(f"`{_text(option)}`" for option in key.options)
    kind = {"int": "integer", "float": "number", "bool": "true, false", "string": "text", "collection": "mapping"}
    told = [kind.get(key.value_type, key.value_type)]
    told += [f"{_SIGNS[name]} {limit:g}" for name, limit in hard_bounds(key.info).items()]
    low, high = key.meta.usual or (None, None)
    if low is not None or high is not None:
        told.append(f"usually {'' if low is None else f'{low:g}'} … {'' if high is None else f'{high:g}'}".rstrip())
    return ", ".join(told)
