"""``layers_precision``: which nodes of a graph differ from the rest. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from fiducial.errors import Problem

__all__ = ["HALVES", "KEY", "SMALL", "LayerRules"]

KEY = "gen_trt_engine.tensorrt.layers_precision"
HALVES, SMALL = ("fp16", "bf16"), ("int8", "fp8")
"""Types of a whole graph; types of the inputs of single layers."""
_KNOWN = ("fp32", *HALVES, *SMALL)
_NO_PATTERN = re.compile(r"[^*?]+")


@dataclass(frozen=True)
class LayerRules:
    """The precision of each node of a graph."""

    others: str
    """Of every node that no item names."""
    rest: str = "fp16"
    """What a node with 8-bit inputs, and what is between such nodes, computes in."""
    named: Mapping[str, str] = field(default_factory=dict)
    """By name or pattern."""

    @classmethod
    def of(cls, tensorrt: Any) -> LayerRules:
        """From a spec's section ``tensorrt`` that :meth:`check` found nothing wrong with."""
        pairs = dict(_split(item) for item in tensorrt.layers_precision or ())
        return cls(pairs.pop("*", tensorrt.data_type), tensorrt.rest, pairs)

    @staticmethod
    def check(tensorrt: Any) -> Iterator[Problem]:
        """What is wrong with the items of a section, whatever the graph."""
        seen: set[str] = set()
        for item in tensorrt.layers_precision or ():
            name, precision = _split(item)
            if not name or precision not in _KNOWN:
                yield Problem(KEY, f"found {item!r}", f"write layer_name:precision with one of {', '.join(_KNOWN)}")
                return
            if name in seen:
                yield Problem(KEY, f"{name!r} twice", "keep one of the two")
            seen.add(name)
        rules = LayerRules.of(tensorrt)
        for group, kinds in ((HALVES, rules._halves), (SMALL, rules._smalls)):
            if len(kinds) > 1:
                both = " and ".join(kind for kind in group if kind in kinds)
                yield Problem(
                    KEY, f"both {both}, with data_type {tensorrt.data_type}", "choose one for the whole engine"
                )

    def unmatched(self, names: Iterable[str]) -> Iterator[Problem]:
        """Items that no node has the name of."""
        known = list(names)
        for pattern in self.named:
            if not any(_fits(name, pattern) for name in known):
                close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5) or known[:3]
                yield Problem(
                    KEY, f"no node of the ONNX file is {pattern!r}", f"its nodes are such as {', '.join(close)}"
                )

    def precision(self, name: str) -> str:
        """That of a node; of several items that name it, the last one's."""
        found = [precision for pattern, precision in self.named.items() if _fits(name, pattern)]
        return found[-1] if found else self.others

    def computes_in(self, name: str) -> str:
        """What a node computes in, its inputs apart."""
        found = self.precision(name)
        return self.rest if found in SMALL else found

    @property
    def half(self) -> str:
        """The half type that some node computes in; empty where none does."""
        return next(iter(self._halves), "")

    @property
    def small(self) -> str:
        """The 8-bit type that some node's inputs have; empty where none has."""
        return next(iter(self._smalls), "")

    @property
    def _halves(self) -> set[str]:
        used = {self.others, *self.named.values()}
        return {self.rest if kind in SMALL else kind for kind in used} & set(HALVES)

    @property
    def _smalls(self) -> set[str]:
        return {self.others, *self.named.values()} & set(SMALL)


def _split(item: str) -> tuple[str, str]:
    """Name and precision; names have colons."""
    name, _, precision = item.strip().rpartition(":")
    return name, precision.strip().lower()


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or (not _NO_PATTERN.fullmatch(pattern) and fnmatchcase(name, pattern))
