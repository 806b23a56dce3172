"""What there is to say about a spec that is valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fiducial.errors import Problem
from fiducial.spec.knob import Key, Section, walk


def remarks(spec: Section, given: set[str]) -> tuple[list[str], tuple[Problem, ...]]:
    """Notices of given keys that have no effect, and warnings of given numbers outside what is usual."""
    notices: list[str] = []
    warnings: list[Problem] = []
    for key in walk(type(spec)):
        if key.path not in given or key.section is not None:
            continue
        value: Any = spec
        for part in key.path.split("."):
            value = getattr(value, part, None)
        if key.meta.ignored and value != key.default:
            notices.append(f"{key.path}: has no effect: {key.meta.ignored}")
        warnings.extend(_unusual(key, value))
        if isinstance(value, list):
            for index, item in zip(key.meta.items, key.items(), strict=True):
                warnings.extend(_unusual(item, value[index : index + 1]))
    return notices, tuple(warnings)


def _unusual(key: Key, value: Any) -> Iterator[Problem]:
    low, high = key.meta.usual or (None, None)
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if (low is not None and number < low) or (high is not None and number > high):
            span = f"{'' if low is None else f'{low:g}'} … {'' if high is None else f'{high:g}'}"
            yield Problem(key.path, f"found {number:g}", f"usual values are {span}", "warning")
