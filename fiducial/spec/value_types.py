"""TAO's words for the kinds of values, and which of them a type annotation means."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

ValueType = Literal[
    "string",
    "int",
    "float",
    "bool",
    "list",
    "list_1_backbone",
    "list_1_normal",
    "list_2",
    "list_3",
    "subset_list",
    "optional_list",
    "collection",
    "union",
    "categorical",
    "ordered_int",
    "ordered",
    "const",
    "enum",
    "dict",
]
VALUE_TYPES: frozenset[str] = frozenset(get_args(ValueType))
LIST_TYPES = frozenset({"list", "list_1_backbone", "list_1_normal", "list_2", "list_3", "subset_list", "optional_list"})
OBJECT_TYPES = frozenset({"collection", "dict"})

_SCALARS: dict[Any, ValueType] = {str: "string", int: "int", float: "float", bool: "bool"}


def union_members(kind: Any) -> tuple[Any, ...]:
    """The members of a union type; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of a ``Literal`` (also when optional); no values for other types."""
    members = _members(annotation)
    return get_args(members[0]) if len(members) == 1 and get_origin(members[0]) is Literal else ()


def item_type_of(annotation: Any) -> Any:
    """The type of a list's items (also when the list is optional), or None for what is no list."""
    return next((get_args(kind)[0] for kind in _members(annotation) if get_origin(kind) is list), None)


def value_type_of(annotation: Any, choices: tuple[Any, ...]) -> ValueType:
    """What TAO calls the values of a type of which only ``choices`` are meant (none given: all).

    Raises: TypeError for a type that none of the words means.
    """
    kinds = {_value_type(member, choices) for member in _members(annotation)}
    return kinds.pop() if len(kinds) == 1 else "union"


def _members(annotation: Any) -> list[Any]:
    """The members of a union without None, and without what ``Annotated`` adds around it and to each."""
    return [kind for kind in map(_bare, union_members(_bare(annotation))) if kind is not type(None)]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _value_type(kind: Any, choices: tuple[Any, ...]) -> ValueType:
    origin = get_origin(kind) or kind
    if origin is list:
        return "list"
    if origin is dict or (isinstance(origin, type) and issubclass(origin, BaseModel)):
        return "collection"
    if origin is Literal or (choices and kind in (str, int)):
        return "ordered_int" if all(type(choice) is int for choice in choices or get_args(kind)) else "categorical"
    if kind in _SCALARS:
        return _SCALARS[kind]
    raise TypeError(f"no value type of TAO's is known for {kind!r}; give the knob its value_type")
