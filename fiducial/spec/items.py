"""Keys of list items: ``cls_weight[1]``, as TAO's schemas and searches write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from fiducial.errors import Problem
from fiducial.spec.bounded import brief
from fiducial.spec.knob import MISSING, Section, meta_of, section_of
from fiducial.spec.overrides import set_value
from fiducial.spec.value_types import item_type_of

_ITEM_KEY = re.compile(r"(?P<name>\w+)\[(?P<index>\d{1,9})\]")


def set_item(kind: type[Section], tree: dict[str, Any], path: str, index: int, value: Any) -> str | None:
    """Set one item of the list at a dotted key; a list that ``tree`` does not set starts as its default.

    An unknown key becomes ``path[index]`` in the tree: validation says what was meant.

    Returns: what is wrong, or None.
    """
    *parents, name = path.split(".")
    node: Any = tree
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    held = node.get(name) if isinstance(node, dict) else None
    if held in (None, "", MISSING):
        info = _field_at(kind, path)
        if info is None:
            return set_value(tree, [*parents, f"{name}[{index}]"], value)
        if item_type_of(info.annotation) is None:
            return f"{path} is not a list"
        held = info.get_default(call_default_factory=True)
    if held is None:
        return f"{path} is not set and has no element {index}; set the whole list"
    if not isinstance(held, list):
        return f"{path} is {brief(held)}, not a list with elements"
    if index >= len(held):
        return f"{path} has no element {index}: its length is {len(held)}; set the whole list"
    return set_value(tree, [*parents, name], [*held[:index], value, *held[index + 1 :]])


def fold_items(kind: type[Section], tree: dict[str, Any], prefix: str = "") -> Iterator[Problem]:
    """Move the values of keys like ``"cls_weight[1]"`` into the lists that they mean, at every depth of ``tree``.

    Yields: the keys of elements that do not exist.
    """
    for key in list(tree):
        found = _ITEM_KEY.fullmatch(str(key))
        name = _own_name(kind, found["name"]) if found else None
        nested = section_of(kind.model_fields[key]) if key in kind.model_fields else None
        if found and name:
            problem = set_item(kind, tree, name, int(found["index"]), tree.pop(key))
            if problem:
                yield Problem(f"{prefix}{key}", problem, "check the key")
        elif nested and isinstance(tree[key], dict):
            yield from fold_items(nested, tree[key], f"{prefix}{key}.")


def _own_name(kind: type[Section], name: str) -> str | None:
    """The field that is called so, by its name or an alias; None for an unknown one."""
    return next((own for own, info in kind.model_fields.items() if name in (own, *meta_of(info).aliases)), None)


def _field_at(kind: type[Section], path: str) -> FieldInfo | None:
    section: type[Section] | None = kind
    info: FieldInfo | None = None
    for part in path.split("."):
        info = section.model_fields.get(part) if section else None
        section = section_of(info) if info else None
    return info
