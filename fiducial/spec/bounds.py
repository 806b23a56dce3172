"""Hard bounds of keys, and of single items of lists."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

_BOUNDS = {
    "ge": ("greater_than_equal", operator.ge),
    "gt": ("greater_than", operator.gt),
    "le": ("less_than_equal", operator.le),
    "lt": ("less_than", operator.lt),
}
"""Pydantic's name of the error, and the comparison that must hold."""


def hard_bounds(info: FieldInfo) -> dict[str, float]:
    """The bounds of a field by name: ``ge``, ``gt``, ``le``, ``lt``."""
    return {name: getattr(limit, name) for limit in info.metadata for name in _BOUNDS if hasattr(limit, name)}


def check_items(items: Mapping[int, FieldInfo], values: list[Any] | None) -> list[Any] | None:
    """The values again. Raises: ValidationError, located at the items that are outside their hard bounds."""
    errors = [
        InitErrorDetails(type=_BOUNDS[name][0], loc=(index,), input=values[index], ctx={name: limit})
        for index, info in items.items()
        if values is not None and index < len(values)
        for name, limit in hard_bounds(info).items()
        if not _BOUNDS[name][1](values[index], limit)
    ]
    if errors:
        raise ValidationError.from_exception_data("item", errors)
    return values
