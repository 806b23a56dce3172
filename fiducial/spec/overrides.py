"""Hydra's override grammar applied to a plain tree, all problems collected.

The grammar is Hydra's own (``a.b=c``, ``+a.b=c``, ``++a.b=c``, ``~a.b``, lists, dicts, quoting); what is ours is that
every override is tried before anything is reported, and that ``+`` on a known key means a plain ``=``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fiducial.errors import Problem

_INDEXED = re.compile(r"^\+{0,2}(?P<key>[\w.]+)\[(?P<index>\d+)\]=(?P<value>.*)$", re.DOTALL)
_QUOTE = "quote a value with special characters: 'key=\"value\"'"


SetItem = Callable[[dict[str, Any], str, int, Any], str | None]
"""Changes a tree at a dotted key and index; returns what is wrong, or None."""


def apply_overrides(
    tree: dict[str, Any], overrides: Iterable[str], *, rename: Callable[[str], str], set_item: SetItem
) -> list[Problem]:
    """Change ``tree`` in place by overrides in Hydra's grammar, their dotted keys put through ``rename`` first.

    Hydra knows no key of a list's item: ``a.b[1]=c`` is split here and done by ``set_item``.

    Returns: the problems (text that does not parse, sweeps, a value below a scalar, an item that does not exist).
    """
    overrides = list(overrides)
    if not overrides:  # not worth the import
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    problems: list[Problem] = []
    for text in overrides:
        indexed = _INDEXED.match(text)
        try:
            parsed: Override = parser.parse_overrides([f"{indexed['key']}={indexed['value']}" if indexed else text])[0]
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(Problem(f"override {text!r}", f"does not parse: {reason}", f"write key=value; {_QUOTE}"))
            continue
        if parsed.is_sweep_override():
            problems.append(
                Problem(f"override {text!r}", "several values (a sweep)", "give one value; a list is [a,b]")
            )
            continue
        key = rename(parsed.key_or_group)
        value = parsed.value()
        if parsed.is_delete():
            _delete(tree, key.split("."))
            continue
        if indexed:
            problem = set_item(tree, key, int(indexed["index"]), value)
        else:
            problem = set_value(tree, key.split("."), value)
        if problem:
            problems.append(Problem(f"override {text!r}", problem, "check the key"))
    return problems


def set_value(tree: dict[str, Any], keys: Sequence[str], value: Any) -> str | None:
    """Set a value below its sections, which are made where they are missing. Returns: what is wrong, or None."""
    node = tree
    for depth, key in enumerate(keys[:-1]):
        child = node.get(key)
        if child is None or child == "":  # a section without keys
            child = node[key] = {}
        if not isinstance(child, dict):
            return f"{'.'.join(keys[: depth + 1])} is {child!r}, not a section"
        node = child
    node[keys[-1]] = value
    return None


def _delete(tree: dict[str, Any], keys: list[str]) -> None:
    node: Any = tree
    for key in keys[:-1]:
        node = node.get(key)
        if not isinstance(node, dict):
            return
    node.pop(keys[-1], None)
