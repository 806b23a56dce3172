"""Pydantic's errors as problems in a user's words: the key, what was found, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import groupby

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fiducial.errors import Problem
from fiducial.redact import STARS, is_secret_name
from fiducial.spec.bounded import brief
from fiducial.spec.knob import Section, item_section_of, meta_of, section_of, walk


def problems_of(kind: type[Section], error: ValidationError) -> Iterator[Problem]:
    """Every error of validating a spec of ``kind``; a misspelt key or choice comes with the one that was meant."""
    for (path, found), alternatives in groupby(_each(kind, error), key=lambda problem: (problem.where, problem.found)):
        fixes = dict.fromkeys(problem.fix for problem in alternatives)  # several of a key of several types
        yield Problem(path, found, ", or ".join(fixes))


def _each(kind: type[Section], error: ValidationError) -> Iterator[Problem]:
    for count, item in enumerate(error.errors(include_url=False)):
        path, info, parent = _locate(kind, item["loc"])
        found, context, code = item["input"], item.get("ctx", {}), item["type"]
        shown = f"found {STARS if is_secret_name(path) else brief(found)}"
        bounds = {
            "greater_than_equal": ("ge", "at least"),
            "greater_than": ("gt", "more than"),
            "less_than_equal": ("le", "at most"),
            "less_than": ("lt", "less than"),
        }
        if code == "extra_forbidden":
            fix = _suggest(kind, parent, path) if count < _SUGGESTIONS else "remove it"
            yield Problem(path, "unknown key", fix)
        elif code in bounds:
            name, words = bounds[code]
            yield Problem(path, shown, f"must be {words} {_number(context[name])}")
        elif code == "literal_error":
            yield Problem(path, shown, f"use one of {context['expected']}{_near(str(found), context['expected'])}")
        elif code in ("bool_parsing", "bool_type"):
            yield Problem(path, shown, "write true or false")
        elif code == "model_type":
            nested = (section_of(info) or item_section_of(info)) if info else None
            keys = ", ".join(nested.model_fields) if nested else ""
            yield Problem(path, shown, f"this is a section with the keys {keys}")
        elif code == "value_error":
            yield Problem(path, shown, str(context.get("error", item["msg"])))
        else:
            yield Problem(path, shown, item["msg"][0].lower() + item["msg"][1:])


def _number(limit: float) -> str:
    return f"{limit:.0f}" if limit == int(limit) else f"{limit:g}"


def _locate(kind: type[Section], loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None, type[Section] | None]:
    """The dotted key of a pydantic location, its field, and the section it stands in."""
    path = ""
    info: FieldInfo | None = None
    parent: type[Section] | None = kind
    section: type[Section] | None = kind
    for step, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
            section = item_section_of(info) if info else None
        elif section is not None and (part in section.model_fields or step == len(loc) - 1):
            path += f".{part}" if path else part
            parent, info = section, section.model_fields.get(part)
            section = section_of(info) if info else None
        elif info is not None and section is None and not any(mark in part for mark in "[(") and part not in _TAGS:
            path += f".{part}"
    return path, info, parent


_SUGGESTIONS = 50
"""Unknown keys for which the one that was meant is looked for; more are never shown."""
_TAGS = frozenset({"str", "int", "float", "bool", "none"})
"""Names of union members that pydantic puts into an error's location."""


def _near(word: str, options: str) -> str:
    close = difflib.get_close_matches(word, [part.strip(" '\"") for part in options.replace(" or ", ",").split(",")], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` with the known key that a misspelt one is closest to, by its last part if need be."""
    names = list(known)
    leaf = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, 1, cutoff=0.75)
    close = close or [other for other in names if other.rpartition(".")[2] == leaf][:1]
    close = close or difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _suggest(kind: type[Section], parent: type[Section] | None, path: str) -> str:
    section_path, _, leaf = path.rpartition(".")
    leaf = leaf.partition("[")[0]  # of a list's item
    prefix = f"{section_path}." if section_path else ""
    fields = parent.model_fields if parent else {}
    here = {
        **{alias: name for name, info in fields.items() for alias in meta_of(info).aliases},
        **{n: n for n in fields},
    }
    close = [here[found] for found in difflib.get_close_matches(leaf, here, 1, cutoff=0.7)]
    elsewhere = [key.path for key in walk(kind) if key.path.rpartition(".")[2] == leaf]
    if close:
        return f"did you mean {prefix}{close[0]}?"
    if elsewhere:
        return f"this key stands at {' or '.join(elsewhere[:3])}"
    anywhere = difflib.get_close_matches(leaf, {key.path.rpartition(".")[2] for key in walk(kind)}, 1, cutoff=0.8)
    if anywhere:
        places = [key.path for key in walk(kind) if key.path.rpartition(".")[2] == anywhere[0]]
        return f"did you mean {' or '.join(places[:3])}?"
    return f"remove it; {section_path or 'the top level'} has the keys {', '.join(here)}"
