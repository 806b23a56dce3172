"""One searched key: where it is looked for, and how a number of the sampler becomes a value of the spec."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from fiducial.errors import optional

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Dimension", "Relation"]

Kind = Literal["float", "int", "choice", "weighted"]
_STEP = 1e-6
"""How far a number is kept from another that it must not reach."""


@dataclass(frozen=True)
class Relation:
    """What a value owes to others, which are chosen before it."""

    operator: Literal[">", ">=", "<", "<=", "==", "/"]
    keys: tuple[str, ...]
    divisor: int = 1

    def applied(self, value: Any, others: Mapping[str, Any], whole: bool) -> Any:
        """The value moved to where it may be; ``/``: that part of the other."""
        numbers = [others[key] for key in self.keys]
        step = 0 if "=" in self.operator else 1 if whole else _STEP
        if self.operator == "/":
            return int(min(numbers) // self.divisor)
        if self.operator == "==":
            return numbers[0]
        if self.operator.startswith(">"):
            low = max(numbers)
            return max(value, (math.ceil(low) if step == 0 else math.floor(low) + step) if whole else low + step)
        high = min(numbers)
        return min(value, (math.floor(high) if step == 0 else math.ceil(high) - step) if whole else high - step)


@dataclass(frozen=True)
class Dimension:
    """A searched key.

    ``choice`` and ``weighted`` have ``options``; the sampler sees an option, or for ``weighted`` a number in 0..1 of
    which each option has its share. ``low`` and ``high`` are both reached.
    """

    path: str
    kind: Kind
    own: Any
    """The value of the spec."""
    rule: str
    """Where the range comes from, in words."""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: int = 1
    options: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()
    relation: Relation | None = None

    @property
    def ends(self) -> tuple[Any, Any]:
        """The least and the greatest value of numbers."""
        return (min(self.options), max(self.options)) if self.options else (self.low, self.high)

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        of = optional("optuna.distributions", extra="automl")
        made: BaseDistribution
        if self.kind == "choice":
            made = of.CategoricalDistribution([self._option(value) for value in self.options])
        elif self.kind == "int":
            made = of.IntDistribution(int(self.low), int(self.high), log=self.log, step=self.step)
        else:
            made = of.FloatDistribution(self.low, self.high, log=self.log)
        return made

    def value(self, param: Any) -> Any:
        """The spec's value for what the sampler chose."""
        if self.kind == "choice":
            return json.loads(param) if isinstance(param, str) and param.startswith(("[", "{")) else param
        if self.kind == "weighted":
            place = bisect_right(self._ends(), param)
            return self.options[min(place, len(self.options) - 1)]
        return int(param) if self.kind == "int" else float(param)

    def param(self, value: Any) -> Any:
        """What the sampler would have to choose for a value; the nearest that it may, where that is outside."""
        if self.kind == "choice":
            return self._option(value if value in self.options else self.options[0])
        if self.kind == "weighted":
            place = self.options.index(value) if value in self.options else 0
            ends = [0.0, *self._ends()]
            return (ends[place] + ends[place + 1]) / 2
        inside = min(max(value, self.low), self.high)
        if self.kind == "int":
            return int(self.low) + round((inside - self.low) / self.step) * self.step
        return float(inside)

    def unit(self, param: Any) -> float:
        """The place of a parameter in 0..1."""
        if self.kind == "choice":
            names = [self._option(value) for value in self.options]
            return (names.index(param) + 0.5) / len(names)
        if self.low == self.high:
            return 0.5
        scale = math.log if self.log else float
        return (scale(param) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def at(self, place: float) -> Any:
        """The parameter at a place in 0..1."""
        place = min(max(place, 0.0), 1.0)
        if self.kind == "choice":
            return self._option(self.options[min(int(place * len(self.options)), len(self.options) - 1)])
        if self.log:
            number = math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        else:
            number = self.low + place * (self.high - self.low)
        number = min(max(number, self.low), self.high)
        return self.param(number) if self.kind == "int" else number

    def range_text(self) -> str:
        """Its range, for people."""
        if self.options:
            shown = ", ".join(_text(option) for option in self.options)
            return f"{shown} (weights {', '.join(f'{w:g}' for w in self.weights)})" if self.weights else shown
        log = ", by orders of magnitude" if self.log else ""
        step = f", multiples of {self.step}" if self.step > 1 else ""
        return f"{self.low:g} … {self.high:g}{log}{step}"

    def plain(self) -> dict[str, Any]:
        """What makes it the same dimension in another run."""
        return {"kind": self.kind, "range": self.range_text(), "relation": repr(self.relation or "")}

    def _option(self, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list | dict | tuple) else value

    def _ends(self) -> list[float]:
        total = sum(self.weights)
        return [part / total for part in accumulate(self.weights)]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
