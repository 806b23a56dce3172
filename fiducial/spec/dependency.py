"""Keys whose value must be known before another key's value can be chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"(?P<operator>>=|<=|==|>|<|/|\^)?\s*(?P<keys>[\w.\[\]]+(\s*,\s*[\w.\[\]]+)*)")


@dataclass(frozen=True)
class Dependency:
    """What a key depends on, and how its value must compare; an empty operator leaves that to ``math_cond``."""

    keys: tuple[str, ...]
    operator: str = ""

    @classmethod
    def parse(cls, text: str) -> Dependency:
        """Read TAO's spelling: ``"a.b"``, ``"a.b,a.c"`` or ``"> a.b"``. Raises: ValueError."""
        found = _TEXT.fullmatch(text.strip())
        if not found:
            raise ValueError(f"{text!r} does not name keys: write 'a.b', 'a.b,a.c' or '> a.b'")
        return cls(tuple(key.strip() for key in found["keys"].split(",")), found["operator"] or "")
