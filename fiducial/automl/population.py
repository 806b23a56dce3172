"""Population based training: members train side by side; the worst go on from the best, with changed values.

TAO's rule: after each generation the worst fifth take values and weights of a random one of the best fifth; numbers are
multiplied or divided by the factor, whole numbers moved by a fifth, choices and switches drawn anew now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fiducial.automl.dimension import Dimension
from fiducial.automl.seeds import derived
from fiducial.automl.space import Space
from fiducial.automl.study import state

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Population", "Proposal"]

_SHARE = 0.2
_REDRAWN = {"choice": 0.5, "weighted": 0.5, "bool": 0.3}


@dataclass(frozen=True)
class Proposal:
    """The next training: its parameters, and what is noted with it."""

    params: dict[str, Any]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Population:
    """What trains next, told from the trials alone, so that it is the same after a stop."""

    space: Space
    size: int
    generations: int
    factor: float
    seed: int
    better: Callable[[float, float | None], bool]
    own_first: bool = True

    def next(self, trials: Sequence[FrozenTrial]) -> Proposal | None:
        """The next training; None while a generation is not over, or when all are."""
        by_place = {(t.user_attrs["generation"], t.user_attrs["member"]): t for t in trials if "member" in t.user_attrs}
        for generation in range(self.generations):
            members = [by_place.get((generation, member)) for member in range(self.size)]
            for member, trial in enumerate(members):
                if trial is None:
                    return self._born(generation, member, by_place)
            done = [t for t in members if t is not None and t.state.is_finished()]
            if len(done) < self.size:
                return None
            if not any(t.state == state("COMPLETE") for t in done):
                return None
        return None

    def is_over(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether no training is to come."""
        members = [t for t in trials if "member" in t.user_attrs and t.state.is_finished()]
        last = max((t.user_attrs["generation"] for t in members), default=0)
        now = [t for t in members if t.user_attrs["generation"] == last]
        if len(now) < self.size:
            return False
        return last + 1 == self.generations or not any(t.state == state("COMPLETE") for t in now)

    def _born(self, generation: int, member: int, by_place: dict[tuple[int, int], FrozenTrial]) -> Proposal:
        rng = np.random.default_rng([derived(self.seed, generation), member])
        notes: dict[str, Any] = {"generation": generation, "member": member}
        if generation == 0:
            if member == 0 and self.own_first:
                return Proposal(self.space.own_params(), {**notes, "own": True})
            return Proposal({d.path: d.at(rng.random()) for d in self.space.dimensions}, notes)
        before = [by_place[generation - 1, other] for other in range(self.size)]
        ranked = self._ranked(before)
        count = max(1, round(_SHARE * self.size))
        own = before[member]
        place = ranked.index(own) if own in ranked else len(ranked)
        if place < max(self.size - count, 1) and own in ranked:
            kept = {**notes, "parent": _root(own)}
            return Proposal(dict(own.params), {**kept, **({"own": True} if own.user_attrs.get("own") else {})})
        parent = ranked[int(rng.integers(min(count, len(ranked))))]
        params = {d.path: self._changed(d, parent.params[d.path], rng) for d in self.space.dimensions}
        return Proposal(params, {**notes, "parent": _root(parent)})

    def _ranked(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those that have a value, the best first."""
        left, ranked = [t for t in trials if t.value is not None], []
        while left:
            best = left[0]
            for trial in left[1:]:
                assert trial.value is not None
                if self.better(trial.value, best.value):
                    best = trial
            ranked.append(best)
            left.remove(best)
        return ranked

    def _changed(self, dimension: Dimension, param: Any, rng: np.random.Generator) -> Any:
        if dimension.kind in _REDRAWN:
            chance = _REDRAWN["bool" if set(dimension.options) == {False, True} else dimension.kind]
            return dimension.at(rng.random()) if rng.random() < chance else param
        if dimension.kind == "int":
            step = max(1, int(0.2 * abs(param)))
            return dimension.param(param + (step if rng.random() < 0.5 else -step))
        return dimension.param(param * (self.factor if rng.random() < 0.5 else 1 / self.factor))


def _root(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("root", trial.number))
