"""BOHB's choice of values: a tree of Parzen estimators over the longest trainings that there are enough of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fiducial.automl.pruning import value_at_rung
from fiducial.automl.space import Space
from fiducial.automl.study import state
from fiducial.errors import optional

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["density_sampler"]


def density_sampler(
    space: Space, seed: int, *, rungs: Sequence[int], least: int, candidates: int, share: float
) -> BaseSampler:
    """The model of the highest rung that ``least`` trainings came to; by chance while there is none.

    Optuna's sampler alone takes every training that went to its end as better than any that was ended early, so that
    its good ones would be those that came first.
    """
    optuna = optional("optuna", extra="automl")

    def good(count: int) -> int:
        return max(1, math.ceil(share * count))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # gamma, which has no successor, goes with Optuna 6
        tree = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=1,
            n_ei_candidates=candidates,
            gamma=good,
            multivariate=True,
            constant_liar=False,
        )
    chance = optuna.samplers.RandomSampler(seed=seed)

    class Density(optuna.samplers.BaseSampler):  # type: ignore[misc,name-defined]
        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return space.distributions()

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            trials = study.get_trials(deepcopy=False, states=(state("COMPLETE"), state("PRUNED")))
            for rung in reversed(rungs):
                found = [
                    (t, value) for t in trials if (value := value_at_rung(t.intermediate_values, rung)) is not None
                ]
                if len(found) >= least:
                    return tree.sample_relative(self._model(study, found), trial, search_space)
            return {}

        def _model(self, study: Any, found: Any) -> Any:
            shadow = optuna.create_study(direction=study.direction)
            shadow.add_trials(
                optuna.trial.create_trial(params=t.params, distributions=t.distributions, value=value)
                for t, value in found
            )
            return shadow

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return chance.sample_independent(study, trial, param_name, param_distribution)

    made: BaseSampler = Density()
    return made
