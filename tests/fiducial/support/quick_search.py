"""Searches of :mod:`quick_task` in this process: no trainings are started, their validations are computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quick_task import QUICK, kpis_of, loss_of

from fiducial.actions.perform import compose_for, known_action, read_spec
from fiducial.automl.algorithms import per_trial
from fiducial.automl.population import Population
from fiducial.automl.prepare import Prepared, prepare
from fiducial.automl.search import Search
from fiducial.automl.space import with_values
from fiducial.automl.study import Workers, check_identity, open_study
from fiducial.automl.trial import Ending, Order
from fiducial.spec.knob import plain


def spec_of(tree: dict[str, Any], *overrides: str) -> Any:
    source = read_spec([QUICK], {"results_dir": "out", **tree}, overrides)
    return compose_for([QUICK], known_action([QUICK], "automl"), source, {}, record=False)[1].spec


def prepared(settings: dict[str, Any] | None = None, **train: Any) -> Prepared:
    return prepare(QUICK, spec_of({"automl": settings or {}, "train": {"num_epochs": 9, **train}}))


class Computed:
    """A training whose validations are there at once, one a look."""

    def __init__(self, order: Order, kpis: Callable[[int], dict[str, Any]], ending: Ending | None = None) -> None:
        self.order, self.kpis, self.end = order, kpis, ending
        self.epoch, self.stopped = 0, False

    def validations(self) -> list[tuple[int, dict[str, Any]]]:
        if self.stopped or self.epoch >= self.order.epochs:
            return []
        self.epoch += 1
        return [(self.epoch, self.kpis(self.epoch))]

    def ending(self) -> Ending | None:
        if self.stopped:
            return Ending("stopped")
        return (self.end or Ending("finished")) if self.epoch >= self.order.epochs else None

    def stop(self) -> None:
        self.stopped = True


class Said(list[str]):
    def moved(self, said: str) -> None:
        if said:
            self.append(said)


def spec_with(ready: Prepared, order: Order) -> Any:
    kind = type(ready.spec)
    return kind.model_validate(with_values(kind, plain(ready.spec), order.values))


def search_in(folder: Path, ready: Prepared, job: Callable[[Order], Computed] | None = None, **how: Any) -> Search:
    def computed(order: Order) -> Computed:
        train = spec_with(ready, order).train
        return Computed(order, lambda epoch: kpis_of("val", loss_of(train, epoch)))

    settings, plan = ready.spec.automl, ready.plan
    study = open_study(
        settings.storage,
        folder,
        "quick",
        ready.goal.direction,
        sampler=per_trial(plan, ready.seed),
        pruner=plan.pruner,
    )
    check_identity(study, ready.identity())
    population = None
    if plan.algorithm == "pbt":
        sizes = (settings.automl_population_size, settings.automl_max_generations)
        population = Population(ready.space, *sizes, settings.automl_perturbation_factor, ready.seed, ready.goal.better)
    start = job or computed
    search = Search(
        study,
        ready.space,
        plan,
        ready.goal,
        Workers(folder),
        lambda order, place: start(order),
        Said(),
        seed=ready.seed,
        own_seed=ready.spec.train.seed,
        terminal=ready.terminal,
        population=population,
        interval=settings.automl_eval_interval,
        pause_s=0.001,
        **how,
    )
    search.begin()
    return search
