"""Where a key is searched: from ``custom_param_ranges``, else from what its knob says, else from the spec's value."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from fiducial.automl.dimension import Dimension, Relation
from fiducial.errors import Problem
from fiducial.spec.bounded import brief
from fiducial.spec.bounds import hard_bounds
from fiducial.spec.dependency import Dependency
from fiducial.spec.knob import Key

__all__ = ["RANGE_KEYS", "custom_ranges", "dimension_of", "fault_of"]

RANGE_KEYS = ("valid_min", "valid_max", "valid_options", "option_weights", "math_cond", "depends_on")
_MEANT = {"min": "valid_min", "max": "valid_max", "values": "valid_options", "options": "valid_options"}
_OF_TAO = {"disable_list": "leave it out: a list is searched by its valid_options"}
_MEANT |= {"weights": "option_weights", "low": "valid_min", "high": "valid_max", "choices": "valid_options"}
_RATE = re.compile(r"(^|_)(lr|wd)$|weight_decay|learning_rate")
"""Keys that are searched by orders of magnitude."""
_CONDITION = re.compile(r"(?P<operator>>=|<=|==|>|<|/|\^)\s*(?P<operand>depends_on|[-+.\deE]+)")
_IDLE = {"options": ("valid_min", "valid_max", "math_cond", "depends_on"), "numbers": ("option_weights",)}
"""Range keys without effect on what is chosen among."""
_CHOICES = ("bool", "categorical", "ordered", "ordered_int")
_ABOVE = 1e-3
"""How far above an end that must not be reached a range begins, as a part of it."""


@dataclass
class _Ends:
    low: float
    high: float
    log: bool
    rule: str


def custom_ranges(
    raw: Mapping[str, Any], keys: Mapping[str, Key], meant: Callable[[str], str]
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The ranges of ``custom_param_ranges`` by key, whether the keys are dotted or nested; and what is wrong.

    ``meant`` says what to do about a key that is not there.
    """
    found: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for path, entry in _entries(raw, keys):
        where = f"automl.custom_param_ranges.{path}"
        if path not in keys:
            problems.append(Problem(where, "unknown key", meant(path)))
        elif not isinstance(entry, Mapping):
            problems.append(Problem(where, f"found {brief(entry)}", f"write a mapping of {', '.join(RANGE_KEYS)}"))
        else:
            known = {name: value for name, value in entry.items() if name in RANGE_KEYS}
            problems += [Problem(f"{where}.{name}", "unknown key", _meant(name)) for name in entry if name not in known]
            found[path] = {name: value for name, value in known.items() if value not in (None, "")}
    return found, problems


def _entries(raw: Mapping[str, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in raw.items():
        path = f"{prefix}{name}"
        inside = isinstance(value, Mapping) and path not in keys and any(key.startswith(f"{path}.") for key in keys)
        if inside:
            yield from _entries(value, keys, f"{path}.")
        else:
            yield path, value


def _meant(name: str) -> str:
    if name in _OF_TAO:
        return _OF_TAO[name]
    close = _MEANT.get(str(name)) or next(iter(difflib.get_close_matches(str(name), RANGE_KEYS, 1)), None)
    return f"did you mean {close}?" if close else f"use {', '.join(RANGE_KEYS)}"


def dimension_of(key: Key, own: Any, custom: Mapping[str, Any], problems: list[Problem]) -> Dimension | None:
    """The dimension of a key whose value in the spec is ``own``; None after a problem."""
    before = len(problems)
    where = f"automl.custom_param_ranges.{key.path}"
    relation = _relation(key, custom, problems, where)
    options = custom.get("valid_options")
    if options is None and key.value_type in _CHOICES:
        options = [False, True] if key.value_type == "bool" else list(key.options)
    kind = "numbers" if options is None else "options"
    problems += [
        Problem(f"{where}.{name}", f"has no effect where {kind} are chosen among", "leave it out")
        for name in _IDLE[kind]
        if name in custom
    ]
    if options is not None:
        found = _choice(key, own, options, custom, problems, where)
    elif key.value_type in ("int", "float"):
        found = _number(key, own, custom, problems, where)
    else:
        fix = f"give {where}.valid_options, or leave the key out"
        problems.append(Problem(key.path, f"a {key.value_type}, which has no range to search", fix))
        return None
    if found is None or len(problems) > before:
        return None
    return Dimension(key.path, own=own, relation=relation, **found)


def _choice(
    key: Key, own: Any, options: Any, custom: Mapping[str, Any], problems: list[Problem], where: str
) -> dict[str, Any] | None:
    given = "valid_options" in custom
    if not isinstance(options, list) or not options:
        found = "an empty list" if options == [] else brief(options)
        problems.append(Problem(f"{where}.valid_options", f"found {found}", "write a list of values"))
        return None
    problems += [
        Problem(f"{where}.valid_options", f"{brief(option)}: {fault}", "choose values that the key may have")
        for option in options
        if (fault := fault_of(key, option))
    ]
    weights = custom.get("option_weights", None if given else key.meta.option_weights)
    kind = "choice"
    if weights is not None:
        kind = "weighted"
        numbers = weights if isinstance(weights, list | tuple) else ()
        if len(numbers) != len(options) or not all(isinstance(w, int | float) and 0 < w < math.inf for w in numbers):
            fix = f"write {len(options)} numbers above 0, one for each option"
            problems.append(Problem(f"{where}.option_weights", f"found {brief(weights)}", fix))
            return None
    rule = "custom_param_ranges" if given else "its options"
    return {"kind": kind, "rule": rule, "options": tuple(options), "weights": tuple(weights or ())}


def _number(
    key: Key, own: Any, custom: Mapping[str, Any], problems: list[Problem], where: str
) -> dict[str, Any] | None:
    whole = key.value_type == "int"
    limits: dict[str, float] = {}
    for name in ("valid_min", "valid_max"):
        value = custom.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        fault = fault_of(key, value) if number else "no finite number"
        if fault:
            problems.append(Problem(f"{where}.{name}", f"{brief(value)}: {fault}", "choose one that the key may have"))
        else:
            limits[name] = float(value)
    if own is None and len(limits) < 2:
        problems.append(Problem(key.path, "null, from which no range follows", f"give {where}.valid_min and valid_max"))
        return None
    ends = _ends(key, own, whole)
    if limits:
        ends = _Ends(
            limits.get("valid_min", ends.low), limits.get("valid_max", ends.high), ends.log, "custom_param_ranges"
        )
        ends.log = _is_log(key, ends)
    if ends.low > ends.high:
        fix = "swap them" if len(limits) == 2 else "give valid_min and valid_max"  # else one end is of another rule
        problems.append(Problem(where, f"it ends before it begins: {ends.low:g} … {ends.high:g}", fix))
        return None
    return _conditioned(key, custom, ends, problems, where)


def _ends(key: Key, own: Any, whole: bool) -> _Ends:
    """The range of a key that the spec gives none, widened to the spec's value."""
    low, high = (None if end is None or math.isinf(end) else float(end) for end in key.schema_range)
    value = 0.0 if own is None else float(own)
    rate = _RATE.search(key.path.rpartition(".")[2]) is not None
    if key.meta.search is not None:
        ends = _Ends(*key.meta.search, False, "the key's own")
    elif rate and value > 0 and not (low and high):
        ends = _Ends(
            max(low or 0, value / 10), min(high or math.inf, value * 10), True, "a tenth to ten times the spec's"
        )
    elif low is not None and high is not None:
        ends = _Ends(low, high, False, "the schema's")
    elif value:
        near, far = sorted((value / 2, value * 2))
        if whole:
            near, far = float(math.floor(near)), float(math.ceil(far))
        ends = _Ends(_at_least(near, low), _at_most(far, high), False, "half to twice the spec's")
    else:
        start = 0.0 if low is None else low
        ends = _Ends(start, start + (10 if whole else 1) if high is None else high, False, "from 0, which the spec has")
    ends.log = _is_log(key, ends)
    if own is not None and not ends.low <= value <= ends.high:
        ends.low, ends.high, ends.rule = min(ends.low, value), max(ends.high, value), f"{ends.rule}, and the spec's"
    return ends


def _at_least(number: float, low: float | None) -> float:
    return number if low is None else max(number, low)


def _at_most(number: float, high: float | None) -> float:
    return number if high is None else min(number, high)


def _is_log(key: Key, ends: _Ends) -> bool:
    if ends.low <= 0 or ends.low == ends.high:
        return False
    if key.meta.log is not None:
        return key.meta.log
    return _RATE.search(key.path.rpartition(".")[2]) is not None or ends.high / ends.low >= 100


def _conditioned(
    key: Key, custom: Mapping[str, Any], ends: _Ends, problems: list[Problem], where: str
) -> dict[str, Any] | None:
    """The range as hard bounds and ``math_cond`` leave it."""
    whole = key.value_type == "int"
    bounds = [(name, limit) for name, limit in hard_bounds(key.info).items()]
    condition = _condition(key, custom, problems, where)
    step, base = 1, None
    if condition is not None and condition[1] is not None:
        operator, number = condition[0], condition[1]
        if operator in (">", ">=", "<", "<="):
            bounds.append(({">": "gt", ">=": "ge", "<": "lt", "<=": "le"}[operator], number))
        elif operator == "/" and "depends_on" not in {**custom, "": ""} and key.meta.depends_on is None:
            step = int(number)
        elif operator == "^":
            base = number
    for name, limit in bounds:
        width = ends.high - limit if name == "gt" else limit - ends.low
        margin = 0.0 if name in ("ge", "le") else 1.0 if whole else _ABOVE * abs(width)
        if name in ("gt", "ge"):
            ends.low = max(ends.low, limit + margin) if name == "ge" or ends.low <= limit else ends.low
        else:
            ends.high = min(ends.high, limit - margin) if name == "le" or ends.high >= limit else ends.high
    ends.log = ends.log and ends.low > 0
    if base is not None:
        powers = _powers(base, ends.low, ends.high, whole)
        if not powers:
            problems.append(Problem(where, f"no power of {base:g} in {ends.low:g} … {ends.high:g}", "widen the range"))
            return None
        return {"kind": "choice", "rule": ends.rule, "options": powers}
    low, high = ends.low, ends.high
    if whole:
        low, high = math.ceil(low / step) * step, math.floor(high / step) * step
        if step > 1 and ends.log:
            ends.log = False  # Optuna has no steps there
    if low > high:
        problems.append(Problem(where, f"nothing is left of {ends.low:g} … {ends.high:g}", "widen the range"))
        return None
    return {
        "kind": "int" if whole else "float",
        "rule": ends.rule,
        "low": float(low),
        "high": float(high),
        "log": ends.log,
        "step": step,
    }


def _powers(base: float, low: float, high: float, whole: bool) -> tuple[float, ...]:
    if base <= 1:
        return ()
    most = math.log(sys.float_info.max, base)
    found = [base**n for n in range(-64, 65) if abs(n) < most and low <= base**n <= high]
    return tuple(int(power) for power in found if power == int(power)) if whole else tuple(found)


def _condition(
    key: Key, custom: Mapping[str, Any], problems: list[Problem], where: str
) -> tuple[str, float | None] | None:
    """Operator and number of ``math_cond``; None for the number where another key stands in its place."""
    text = custom.get("math_cond", key.meta.math_cond)
    if text is None:
        return None
    found = _CONDITION.fullmatch(str(text).strip())
    try:
        if not found:
            raise ValueError
        operator, number = found["operator"], None if found["operand"] == "depends_on" else float(found["operand"])
        if operator == "/" and not (key.value_type == "int" and number and number >= 1 and number.is_integer()):
            raise ValueError
        return operator, number
    except ValueError:
        multiples = "'/ 32', " if key.value_type == "int" else ""
        fix = f"write a condition such as '> 0', {multiples}'^ 2' or '> depends_on'"
        problems.append(Problem(f"{where}.math_cond", f"found {brief(text)}", fix))
        return None


def _relation(key: Key, custom: Mapping[str, Any], problems: list[Problem], where: str) -> Relation | None:
    text = custom.get("depends_on", key.meta.depends_on)
    condition = _condition(key, custom, [], where)
    if text is None:
        if condition is not None and condition[1] is None:
            problems.append(Problem(f"{where}.depends_on", "not set, but math_cond names it", "name a key"))
        return None
    try:
        depends = Dependency.parse(str(text))
    except ValueError as error:
        problems.append(Problem(f"{where}.depends_on", str(error), "name a key"))
        return None
    operator, divisor = depends.operator, 1
    if not operator and condition is not None:
        operator = condition[0] if condition[1] is None else "/" if condition[0] == "/" else ""
        divisor = int(condition[1]) if condition[0] == "/" and condition[1] else 1
    if condition is not None and condition[0] in "/^" and condition[0] != operator:
        fix = "leave one of them out"
        problems.append(Problem(f"{where}.math_cond", f"{condition[0]!r} beside depends_on {text!r}", fix))
        return None
    if operator in ("", "^"):
        fix = "write '> a.key', or a math_cond such as '> depends_on' or '/ 2'"
        problems.append(Problem(f"{where}.depends_on", f"{text!r} does not say how", fix))
        return None
    return Relation(operator, depends.keys, divisor)  # type: ignore[arg-type]


def fault_of(key: Key, value: Any) -> str | None:
    """Why a key cannot have a value; None when it can."""
    if isinstance(value, bool | str) and key.value_type in ("int", "float"):
        return "a text is no number" if isinstance(value, str) else "true and false are no numbers"
    kind: Any = Annotated[key.info.annotation, *key.info.metadata]
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        return message[0].lower() + message[1:]
    return None
