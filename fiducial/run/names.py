"""File names of checkpoints. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["best_name", "checkpoint_name", "fault_of", "fields_of"]

_FIELD = re.compile(r"\{(?P<name>[^{}:]+)(?P<format>:[^{}]*)?\}")


def checkpoint_name(epoch: int, step: int) -> str:
    """TAO's name of a periodic checkpoint; ``epoch`` counts from 0."""
    return f"model_epoch_{epoch:03d}_step_{step:05d}.pth"


def fields_of(template: str) -> list[str]:
    """The names in the braces of a template for :func:`best_name`; metrics may hold blanks and slashes."""
    return [match["name"] for match in _FIELD.finditer(template)]


def best_name(template: str, values: Mapping[str, float], *, insert_names: bool) -> str:
    """``model_best_{epoch:03d}`` filled in: ``model_best_004.pth``, or ``model_best_epoch_004.pth`` with names.

    A metric without a value is 0, as in Lightning.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        text = format(values.get(name, 0), (match["format"] or "").removeprefix(":"))
        return f"{name}_{text}".replace("/", "_") if insert_names else text

    return _FIELD.sub(fill, template) + ".pth"


def fault_of(template: str) -> str:
    """Why a template for :func:`best_name` names no file, empty when it does."""
    if any(re.search(r"\d{4}", match["format"] or "") for match in _FIELD.finditer(template)):
        return "a number of thousands of digits"
    values = {name: 0 if name in ("epoch", "step") else 0.0 for name in fields_of(template)}
    try:
        name = best_name(template, values, insert_names=True)
    except ValueError as error:
        return str(error)
    size = len(name.encode())
    return f"a name of {size} bytes, where 255 is the most" if size > 255 else ""
