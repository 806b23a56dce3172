"""Trees of plain data from files that somebody else wrote: made safe to walk."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

__all__ = ["MAX_DEPTH", "MAX_NODES", "walkable"]

MAX_DEPTH = 100
MAX_NODES = 20_000_000
"""Entries that a walk through a tree may meet, one that stands in several places counted in each of them."""

_DICTS = (dict, OrderedDict, Counter)
_LISTS = (list, tuple, set, frozenset)


def walkable(tree: Any) -> Any:
    """The same tree without cycles: where a part holds itself, there is None. Parts that are shared stay shared.

    Raises: ValueError when it is nested deeper than :data:`MAX_DEPTH`, or shared parts make it larger than
    :data:`MAX_NODES`.
    """
    return _copy(tree, 0, {}, set())[0]


def _copy(tree: Any, depth: int, done: dict[int, tuple[Any, int]], open_: set[int]) -> tuple[Any, int]:
    """The copy, and how many entries a walk through it meets."""
    if not isinstance(tree, (*_DICTS, *_LISTS)):
        return tree, 1
    if id(tree) in done:
        return done[id(tree)]
    if id(tree) in open_:
        return None, 1
    if depth > MAX_DEPTH:
        raise ValueError(f"data nested more than {MAX_DEPTH} deep")
    open_.add(id(tree))
    values = [_copy(value, depth + 1, done, open_) for value in (tree.values() if isinstance(tree, _DICTS) else tree)]
    open_.discard(id(tree))
    size = 1 + sum(count for _, count in values)
    if size > MAX_NODES:
        raise ValueError("data that unfold without end")
    copied = _rebuilt(tree, [value for value, _ in values])
    done[id(tree)] = copied, size
    return copied, size


def _rebuilt(tree: Any, values: list[Any]) -> Any:
    """``tree`` with other values; itself where nothing changed."""
    before = list(tree.values()) if isinstance(tree, _DICTS) else list(tree)
    if all(one is other for one, other in zip(before, values, strict=True)):
        return tree
    if isinstance(tree, _DICTS):
        made = type(tree)()
        made.update(zip(tree, values, strict=True))
        return made
    return type(tree)(values)
