"""Data from outside as plain data of bounded size and depth: what all that follows may walk, copy and print."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fiducial.errors import SpecError
from fiducial.redact import redact_text

__all__ = ["MAX_SIZE", "Budget", "bounded", "brief", "key_text"]

MAX_SIZE = 2**20
"""Characters of a whole spec, where each value counts as some more than it has."""
MAX_DEPTH = 24
_PER_VALUE = 32
_LONGEST_SHOWN = 200
_LARGEST_INT = 2**63 - 1
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass
class Budget:
    """What may still be copied."""

    left: int = MAX_SIZE

    def spend(self, size: int, where: str) -> None:
        """Raises: SpecError when it is used up."""
        self.left -= size
        if self.left < 0:
            found = f"becomes more than {MAX_SIZE >> 20} MiB of values"
            raise SpecError(where, found, "a spec has some hundreds of them: use fewer aliases and references")


def bounded(value: Any, name: str, *, path: str = "", budget: Budget | None = None) -> Any:
    """A copy as dicts with text for keys, lists, text, numbers, booleans and None; nothing in it is shared.

    ``name`` says in messages what the value is, ``path`` at which key of the spec it stands.

    Raises: SpecError for what is too much, too deep (or holds itself), or none of these.
    """
    return _Copy(name, budget or Budget()).of(value, path, 0)


@dataclass
class _Copy:
    name: str
    budget: Budget

    def of(self, value: Any, path: str, depth: int) -> Any:
        where = path or self.name
        if depth > MAX_DEPTH:
            found = f"nested more than {MAX_DEPTH} deep, or in itself"
            raise SpecError(re.split(r"[.\[]", where)[0], found, "a spec needs far less: flatten it")
        self.budget.spend(_PER_VALUE, self.name)
        if isinstance(value, Mapping):
            named = [(key_text(key), item) for key, item in value.items()]
            return {self.text(key, where): self.of(item, _join(path, key), depth + 1) for key, item in named}
        if isinstance(value, (list, tuple)):
            return [self.of(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        if isinstance(value, (str, os.PathLike)):
            return self.text(os.fspath(value), where)
        if value is None or isinstance(value, (bool, float)):
            return value
        if not isinstance(value, int):
            found = f"a {type(value).__name__} is no value of a spec"
            raise SpecError(where, found, "use text, numbers, true, false or null")
        if abs(value) > _LARGEST_INT:
            raise SpecError(where, "a number of more than 64 bits", "no key takes such a number: lower it")
        return int(value)

    def text(self, text: Any, where: str) -> str:
        self.budget.spend(len(text), self.name)
        if not isinstance(text, str):
            raise SpecError(where, f"a {type(text).__name__} is no text", "write it as text")
        if found := _UNWRITABLE.search(text):
            raise SpecError(where, f"holds the character U+{ord(found[0]):04X}", "remove it: no file can be named so")
        return str(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key[:80]}" if path else key[:80]


def key_text(key: Any) -> str:
    """A key as YAML writes it."""
    return {None: "null", True: "true", False: "false"}[key] if key is None or isinstance(key, bool) else str(key)


def brief(value: Any) -> str:
    """A value as messages show it."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__}"
    shown = redact_text(repr(value))  # before it is cut: of half a secret nobody would know that it is one
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
