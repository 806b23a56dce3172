"""TAO's algorithms: what chooses values, what ends trainings early, how many there are and how long they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fiducial.automl.goal import Goal
from fiducial.automl.seeds import derived
from fiducial.automl.space import Space
from fiducial.automl.study import place_of
from fiducial.errors import optional

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["ENDS_EARLY", "Plan", "brackets", "plan_of"]

ENDS_EARLY = ("hyperband", "asha", "bohb", "dehb", "hyperband_es")
"""Algorithms that end trainings before their last epoch."""
_DEFAULT_TRIALS = 20
_WARM_UP = {"bayesian": 5, "bfbo": 5}
"""Trainings before the first that the model chooses."""


@dataclass(frozen=True)
class Plan:
    """An algorithm with its settings."""

    algorithm: str
    sampler: Callable[[int], BaseSampler]
    """Makes a sampler from a seed."""
    pruner: BasePruner
    trials: int | None
    """Trainings in all; None where something else ends the search."""
    epochs: int
    """Of a training that is not ended early."""
    least_epochs: int
    """After which one may end early: what validations must not be rarer than."""
    concurrent: int | None
    """Trainings at a time; None: as many as there are groups of GPUs, up to four."""
    top_configs: int | None = None
    """The search ends when so many trainings went to the end."""
    notes: tuple[str, ...] = ()
    """What stands in for what TAO does."""


def brackets(most: int, eta: int) -> list[tuple[int, int]]:
    """TAO's brackets of hyperband: how many trainings each begins with, and after how many units the first end."""
    last = math.floor(math.log(most) / math.log(eta) + 1e-9)
    return [(math.ceil((last + 1) // (s + 1) * eta**s), max(1, most // eta**s)) for s in range(last, 0, -1)]


def plan_of(spec: Any, space: Space, goal: Goal) -> Plan:
    """The plan of a spec. Imports Optuna; torch only where its Gaussian process chooses."""
    optuna = optional("optuna", extra="automl")
    settings = spec.automl
    name = settings.automl_algorithm
    unit, eta = settings.epoch_multiplier, settings.automl_reduction_factor
    early = name in ENDS_EARLY
    most = (
        (settings.automl_max_epochs * unit if settings.automl_max_epochs else spec.train.num_epochs)
        if early
        else (
            settings.automl_max_generations * settings.automl_eval_interval if name == "pbt" else spec.train.num_epochs
        )
    )
    least = min(settings.automl_min_epochs * unit, most)
    wanted = [n for n in (settings.automl_max_recommendations, settings.automl_max_trials) if n is not None]
    trials: int | None = min(wanted) if wanted else _DEFAULT_TRIALS
    top = None
    if name == "pbt":
        trials = settings.automl_population_size * settings.automl_max_generations
    elif name == "asha" and not wanted:
        trials, top = None, settings.automl_min_top_configs
    elif early and not wanted:
        trials = max(1, sum(count for count, _ in brackets(max(2, most // least), eta)))
    concurrent = settings.automl_max_concurrent
    if concurrent is None and name not in ("asha", "bfbo", "pbt"):
        concurrent = 1
    rungs = [least * eta**k for k in range(32) if least * eta**k < most]
    return Plan(
        algorithm=name,
        sampler=_sampler(optuna, name, settings, space, [*rungs, most]),
        pruner=_pruner(optuna, name, settings, goal, most, least, rungs),
        trials=trials,
        epochs=most,
        least_epochs=least,
        concurrent=concurrent,
        top_configs=top,
        notes=_NOTES.get(name, ()),
    )


_NOTES: dict[str, tuple[str, ...]] = {
    "bfbo": (
        "bfbo: TAO's upper confidence bound with local penalties is replaced by the expected improvement of a batch, "
        "which takes the trainings that are running into account",
    ),
    "hyperband": ("hyperband: rungs do not wait for each other, and trainings go on in place of being continued",),
    "asha": ("asha: trainings go on from rung to rung, or end, in place of being continued later",),
    "bohb": ("bohb: rungs do not wait for each other; the density estimates are those of Optuna's multivariate TPE",),
    "dehb": ("dehb: one population of the trainings so far, in place of one for each rung",),
    "hyperband_es": ("hyperband_es: as hyperband; the power law is compared with the median of the finished",),
    "pbt": ("pbt: every member goes on from a checkpoint; the best of the last generations is the result",),
}


def _sampler(optuna: Any, name: str, settings: Any, space: Space, rungs: list[int]) -> Callable[[int], BaseSampler]:
    of = optuna.samplers
    if name in ("bayesian", "bfbo"):
        return lambda seed: of.GPSampler(seed=seed, n_startup_trials=_WARM_UP[name], warn_independent_sampling=False)
    if name == "bohb":
        from fiducial.automl.density import density_sampler

        return lambda seed: density_sampler(
            space,
            seed,
            rungs=rungs,
            least=settings.automl_min_points_in_model,
            candidates=settings.automl_kde_samples,
            share=settings.automl_top_n_percent / 100,
        )
    if name == "dehb":
        from fiducial.automl.evolution import evolution_sampler

        return lambda seed: evolution_sampler(
            space, seed, mutation=settings.automl_mutation_factor, crossover=settings.automl_crossover_prob
        )
    return lambda seed: of.RandomSampler(seed=seed)


def _pruner(optuna: Any, name: str, settings: Any, goal: Goal, most: int, least: int, rungs: list[int]) -> BasePruner:
    from fiducial.automl.pruning import halving, with_curves

    eta: int = settings.automl_reduction_factor
    if name not in ENDS_EARLY:
        return optuna.pruners.NopPruner()  # type: ignore[no-any-return]
    counts = [1] if name == "asha" else [count for count, _ in brackets(max(2, most // least), eta)]
    pruner = halving(goal, rungs=rungs, eta=eta, brackets=counts[: len(rungs)] or [1])
    if name == "hyperband_es":
        return with_curves(
            pruner,
            goal,
            last=most,
            least=settings.automl_min_early_stop_epochs,
            confidence=settings.automl_early_stop_threshold,
        )
    return pruner


def per_trial(plan: Plan, seed: int) -> BaseSampler:
    """A sampler whose choice for a training depends on the seed, its number and the trainings before it alone.

    So a search that is continued, or that several processes share, chooses nothing twice.
    """
    samplers = optional("optuna.samplers", extra="automl")

    class PerTrial(samplers.BaseSampler):  # type: ignore[misc,name-defined]
        inner = plan.sampler(derived(seed, 0))

        def before_trial(self, study: Any, trial: FrozenTrial) -> None:
            place = place_of(trial.number, study.get_trials(deepcopy=False))
            self.inner = plan.sampler(derived(seed, place))
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> Any:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> Any:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Any, trial: FrozenTrial, state: Any, values: Any) -> None:
            self.inner.after_trial(study, trial, state, values)

    made: BaseSampler = PerTrial()
    return made
