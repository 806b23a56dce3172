"""Differential evolution, which Optuna does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fiducial.automl.space import Space
from fiducial.automl.study import state
from fiducial.errors import optional

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["evolution_sampler"]

_POPULATION = 10
"""Most trainings that parents are taken from: the better half of those that went furthest."""


def evolution_sampler(space: Space, seed: int, *, mutation: float, crossover: float) -> BaseSampler:
    """``rand/1/bin`` on the unit cube: a parent, some of whose values come from ``a + mutation * (b - c)``.

    Random until there are four trainings.
    """
    samplers = optional("optuna.samplers", extra="automl")
    dims = {dimension.path: dimension for dimension in space.dimensions}
    rng = np.random.default_rng(seed)

    class Evolution(samplers.BaseSampler):  # type: ignore[misc,name-defined]
        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return space.distributions()

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            sign = 1 if study.direction.name == "MINIMIZE" else -1
            trials = study.get_trials(deepcopy=False, states=(state("COMPLETE"), state("PRUNED")))
            ranked = sorted(
                (t for t in trials if t.value is not None), key=lambda t: (-(t.last_step or 0), sign * t.value)
            )
            points = [
                [d.unit(t.params[d.path]) for d in dims.values()]
                for t in ranked[: min(_POPULATION, max(4, len(ranked) // 2))]
            ]
            if len(points) < 4:
                return {path: dimension.at(rng.random()) for path, dimension in dims.items()}
            parent, a, b, c = np.asarray(points)[rng.choice(len(points), 4, replace=False)]
            mutant = a + mutation * (b - c)
            outside = (mutant < 0) | (mutant > 1)
            mutant[outside] = rng.random(int(outside.sum()))
            taken = rng.random(len(mutant)) < crossover
            taken[rng.integers(len(mutant))] = True
            child = np.where(taken, mutant, parent)
            return {path: dims[path].at(float(place)) for path, place in zip(dims, child, strict=True)}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return dims[param_name].at(rng.random())

    made: BaseSampler = Evolution()
    return made
