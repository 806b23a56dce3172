"""Hydra's override grammar applied to a plain tree, all problems collected.

The grammar is Hydra's own (``a.b=c``, ``+a.b=c``, ``++a.b=c``, ``~a.b``, lists, dicts, quoting); what is ours is that
every override is tried before anything is reported, and that ``+`` on a known key means a plain ``=``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from fiducial.errors import Problem

_INDEXED = re.compile(r"^(?P<key>[\w.]+)\[(?P<index>\d+)\]=(?P<value>.*)$", re.DOTALL)
_QUOTE = "quote a value with special characters: 'key=\"value\"'"


def apply_overrides(
    tree: dict[str, Any], overrides: Iterable[str], rename: Callable[[str], str] = str
) -> list[Problem]:
    """Change ``tree`` in place by overrides in Hydra's grammar, their dotted keys put through ``rename`` first.

    Returns: the problems (text that does not parse, sweeps, a value below a scalar).
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
            problem = _set_item(tree, key, int(indexed["index"]), value)
        else:
            problem = _set(tree, key.split("."), value)
        if problem:
            problems.append(Problem(f"override {text!r}", problem, "check the key"))
    return problems


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> str | None:
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


def _set_item(tree: dict[str, Any], key: str, index: int, value: Any) -> str | None:
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, list) or index >= len(node):
        return f"{key} has no element {index} in the YAML; set the whole list"
    node[index] = value
    return None


def _delete(tree: dict[str, Any], keys: list[str]) -> None:
    node: Any = tree
    for key in keys[:-1]:
        node = node.get(key)
        if not isinstance(node, dict):
            return
    node.pop(keys[-1], None)
