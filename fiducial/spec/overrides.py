"""Hydra's override grammar applied to a plain tree, all problems collected.

The grammar is Hydra's own (``a.b=c``, ``+a.b=c``, ``++a.b=c``, ``~a.b``, lists, dicts, quoting); what is ours is that
every override is tried before anything is reported, and that ``+`` on a known key means a plain ``=``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fiducial.errors import Problem, SpecError
from fiducial.redact import STARS, is_secret_name, redact_text
from fiducial.spec.bounded import bounded, brief

_INDEXED = re.compile(r"^\+{0,2}(?P<key>[\w.]+)\[(?P<index>\d{1,9})\]=(?P<value>.*)$", re.DOTALL)
_MAX_TEXT = 2**13
_LEXER = "LexerNoViableAltException: "
_QUOTE = "quote a value with special characters: 'key=\"value\"'"

Rename = Callable[[str], str]
SetItem = Callable[[dict[str, Any], str, int, Any], str | None]
"""Changes a tree at a dotted key and index; returns what is wrong, or None."""


def apply_overrides(
    tree: dict[str, Any], overrides: Iterable[str], *, rename: Rename, set_item: SetItem
) -> list[Problem]:
    """Change ``tree`` in place by overrides in Hydra's grammar, their dotted keys put through ``rename`` first.

    Hydra knows no key of a list's item: ``a.b[1]=c`` is split here and done by ``set_item``.

    Returns: the problems (text that does not parse, sweeps, a value below a scalar, an item that does not exist).
    """
    overrides = list(overrides)
    if not overrides:  # not worth the import
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    problems = (_apply(tree, text, parser, rename, set_item) for text in overrides)
    return [problem for problem in problems if problem]


def _apply(tree: dict[str, Any], text: str, parser: Any, rename: Rename, set_item: SetItem) -> Problem | None:
    from hydra.errors import HydraException

    where = f"override {_shown(text)}"
    indexed = _INDEXED.match(text)
    if len(text) > _MAX_TEXT:
        return Problem(where, f"has {len(text)} characters", "write so much into the spec file")
    try:
        parsed = parser.parse_overrides([f"{indexed['key']}={indexed['value']}" if indexed else text])[0]
        key = rename(parsed.key_or_group)
        if not key:
            return Problem(where, "names no key", "write key=value")
        if parsed.is_sweep_override():
            return Problem(where, "several values (a sweep)", "give one value; a list is [a,b]")
        value = bounded(parsed.value(), where, path=key)
    except (HydraException, ValueError, TypeError, RecursionError) as error:
        return Problem(where, f"does not parse{_reason(text, error)}", f"write key=value; {_QUOTE}")
    except SpecError as error:
        return error.problems[0]
    if parsed.is_delete():
        _delete(tree, key.split("."))
        return None
    if indexed:
        problem = set_item(tree, key, int(indexed["index"]), value)
    else:
        problem = set_value(tree, key.split("."), value)
    return Problem(where, problem, "check the key") if problem else None


def _reason(text: str, error: Exception) -> str:
    """What the parser says, in a line."""
    if "://" in text or _names_secret(text):  # it may show just that
        return ""
    first, *more = str(error).splitlines() or [type(error).__name__]
    if first.startswith(_LEXER) and more:  # the second line points at the character
        return f": {text[len(more[0]) - len(_LEXER) - 1 :][:1]!r} is not understood"
    return f": {first.partition(' expecting ')[0][:200]}"


def _shown(text: str) -> str:
    """An override as messages show it: short, and without what may be a secret."""
    return brief(f"{text.partition('=')[0]}={STARS}" if _names_secret(text) else redact_text(text[:1000]))


def _names_secret(text: str) -> bool:
    return any(is_secret_name(word) for word in re.findall(r"\w+", text[:_MAX_TEXT]))


def set_value(tree: dict[str, Any], keys: Sequence[str], value: Any) -> str | None:
    """Set a value below its sections, which are made where they are missing. Returns: what is wrong, or None."""
    node = tree
    for depth, key in enumerate(keys[:-1]):
        child = node.get(key)
        if child is None or child == "":  # a section without keys
            child = node[key] = {}
        if not isinstance(child, dict):
            return f"{'.'.join(keys[: depth + 1])} is {brief(child)}, not a section"
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
