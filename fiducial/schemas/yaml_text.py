"""A spec as YAML with the meaning of each key above it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from fiducial.spec.knob import Section, meta_of, section_of

__all__ = ["explained_yaml"]

_WIDTH = 110


def explained_yaml(kind: type[Section], tree: Mapping[str, Any]) -> str:
    """The keys of ``tree``, each below a comment that says what it means; in the order of their declaration."""
    return "\n".join(_lines(kind, tree, "")) + "\n"


def _lines(kind: type[Section], tree: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, info in kind.model_fields.items():
        if name not in tree:
            continue
        if not indent:
            yield ""
        help = " ".join(meta_of(info).help.split())
        yield from textwrap.wrap(help, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        nested, value = section_of(info), tree[name]
        if nested is not None and isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _lines(nested, value, f"{indent}  ")
        else:
            yield from (f"{indent}{line}" for line in _block(name, value))


def _block(name: str, value: Any) -> list[str]:
    import yaml

    is_short = isinstance(value, (list, dict)) and not any(isinstance(item, (list, dict)) for item in _items(value))
    if is_short:
        inline: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=True)
        return [f"{name}: {inline.strip()}"]
    text: str = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=10_000)
    return text.rstrip("\n").split("\n")


def _items(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)
