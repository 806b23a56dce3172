"""A tree of stand-ins as plain data that any walk can go over: without cycles, not deep, not repeating itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from fiducial.checkpoints.budget import OBJECT_BYTES, TooMuchError
from fiducial.checkpoints.stand_ins import Array, DType, Inert, Name

__all__ = ["DEEPEST", "plain"]

DEEPEST = 100
"""So many containers may be inside one another."""


def plain(tree: Any, limit: float = float("inf")) -> Any:
    """The same tree with every stand-in replaced by plain data.

    OmegaConf containers become dicts and lists, paths strings, other objects their items, their state or their only
    argument; a class becomes its name. Shared parts stay shared; where a part is inside itself, None stands.

    Raises: TooMuchError when it is deeper than :data:`DEEPEST`, or would be more than ``limit`` bytes if no part were
        shared.
    """
    part = _Plain().of(tree, 0)
    if part.size > limit:
        raise TooMuchError(f"it repeats its own parts to more than {limit / 2**20:,.0f} MiB")
    return part.value


class _Part(NamedTuple):
    value: Any
    size: int
    """Bytes, roughly, when no part of it is shared."""
    height: int
    """How many containers are inside one another."""


_CUT = _Part(None, OBJECT_BYTES, 0)


class _Plain:
    def __init__(self) -> None:
        self.seen: dict[int, _Part] = {}

    def of(self, tree: Any, depth: int) -> _Part:
        part = self.seen.get(id(tree))
        if part is None:
            if depth > DEEPEST:
                raise TooMuchError(f"more than {DEEPEST} containers are inside one another")
            if not isinstance(tree, dict | list | tuple | set | frozenset | Inert | Array):
                return _leaf(tree)
            self.seen[id(tree)] = _CUT
            part = self.seen[id(tree)] = self._container(tree, depth + 1)
        if depth + part.height > DEEPEST:
            raise TooMuchError(f"more than {DEEPEST} containers are inside one another")
        return part

    def _container(self, tree: Any, depth: int) -> _Part:
        if isinstance(tree, Inert):
            return self._object(tree, depth)
        if isinstance(tree, Array):
            value = tree.value()
            return self.of(value, depth) if isinstance(value, list) else _leaf(value)
        if isinstance(tree, dict):
            keys, values = self._each(tree.keys(), depth), self._each(tree.values(), depth)
            pairs = zip((key.value for key in keys), (part.value for part in values), strict=True)
            return _joined((Counter if isinstance(tree, Counter) else dict)(dict(pairs)), [*keys, *values])
        parts = self._each(tree, depth)
        return _joined(type(tree)(part.value for part in parts), parts)

    def _each(self, things: Iterable[Any], depth: int) -> list[_Part]:
        return [self.of(thing, depth) for thing in things]

    def _object(self, thing: Inert, depth: int) -> _Part:
        if thing.name.startswith("pathlib."):
            kind = PureWindowsPath if "Windows" in thing.name else PurePosixPath
            return _leaf(str(kind(*(part for part in thing.args if isinstance(part, str)))))
        if thing.name.startswith("omegaconf."):
            for content in ("_content", "_val"):
                if content in thing.state:
                    return self.of(thing.state[content], depth)
        for data in (thing.pairs, thing.items, thing.state):
            if data:
                return self.of(data, depth)
        if len(thing.args) == 1:
            return self.of(thing.args[0], depth)
        args = self._each(thing.args, depth)
        return _joined([part.value for part in args], args) if args else _CUT


def _leaf(thing: Any) -> _Part:
    if isinstance(thing, Name):
        return _Part(thing.name, OBJECT_BYTES, 0)
    if isinstance(thing, DType):
        return _Part(thing.code, OBJECT_BYTES, 0)
    if isinstance(thing, str | bytes | bytearray):
        return _Part(thing, OBJECT_BYTES + len(thing), 0)
    return _Part(thing, OBJECT_BYTES + (thing.nbytes if isinstance(thing, np.ndarray) else 0), 0)


def _joined(value: Any, parts: list[_Part]) -> _Part:
    return _Part(
        value, OBJECT_BYTES + sum(part.size for part in parts), 1 + max((part.height for part in parts), default=0)
    )
