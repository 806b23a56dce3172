"""What ends a training early, beside Optuna's own rules."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fiducial.automl.goal import Goal
from fiducial.automl.study import root_of, state
from fiducial.errors import optional

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

__all__ = ["bracket_of", "extrapolated", "halving", "value_at_rung", "with_curves"]


def halving(goal: Goal, *, rungs: Sequence[int], eta: int, brackets: Sequence[int] = (1,)) -> BasePruner:
    """Successive halving with a quota: of the trainings that came to a rung one in ``eta`` goes on, the best ones.

    ``rungs``: the epochs after which trainings are compared. Bracket ``i`` begins at rung ``i``; ``brackets`` says how
    many trainings of each there are. One that is the best so far also goes on when the quota, which is TAO's, is used
    up, but not twice the quota. Optuna's own pruners know none, and in a search that gets better nearly every training
    is the best so far.
    """
    pruners = optional("optuna.pruners", extra="automl")

    class Halving(pruners.BasePruner):  # type: ignore[misc,name-defined]
        def prune(self, study: Any, trial: Any) -> bool:
            mine = bracket_of(root_of(trial), brackets)
            rung = _rung(trial.intermediate_values, rungs[mine:])
            if rung is None:
                return False
            trials = study.get_trials(deepcopy=False, states=(state("COMPLETE"), state("PRUNED"), state("RUNNING")))
            others = [
                t
                for t in trials
                if t.number != trial.number
                and bracket_of(root_of(t), brackets) == mine
                and value_at_rung(t.intermediate_values, rung) is not None
            ]
            own = value_at_rung(trial.intermediate_values, rung)
            better = sum(goal.better(value_at_rung(t.intermediate_values, rung) or 0.0, own) for t in others)
            passed = [t for t in others if max(t.intermediate_values) > _step(t.intermediate_values, rung)]
            allowed = math.ceil((len(others) + 1) / eta)
            most = allowed if better else 2 * allowed
            return better >= allowed or sum(not t.user_attrs.get("own") for t in passed) >= most

    made: BasePruner = Halving()
    return made


def bracket_of(number: int, brackets: Sequence[int]) -> int:
    """The bracket of a trial: in these proportions, spread evenly."""
    place = (number * 0.6180339887498949) % 1.0 * sum(brackets)
    return bisect_right(list(accumulate(brackets)), place)


def _rung(curve: Mapping[int, float], rungs: Sequence[int]) -> int | None:
    """The rung that the last validation came to; None when it came to none."""
    *before, last = sorted(curve) or [0]
    reached = [rung for rung in rungs if (before[-1] if before else 0) < rung <= last]
    return reached[-1] if reached else None


def _step(curve: Mapping[int, float], rung: int) -> int:
    """The first validation at or after a rung; 0 for none."""
    return min((epoch for epoch in curve if epoch >= rung), default=0)


def value_at_rung(curve: Mapping[int, float], rung: int) -> float | None:
    """What the first validation at or after a rung gave; None where there was none."""
    return curve.get(_step(curve, rung))


def with_curves(inner: BasePruner, goal: Goal, *, last: int, least: int, confidence: float) -> BasePruner:
    """The same rule, and: a training ends whose curve leads to less than the median of those that are finished."""
    pruners = optional("optuna.pruners", extra="automl")

    class Curves(pruners.BasePruner):  # type: ignore[misc,name-defined]
        def prune(self, study: Any, trial: Any) -> bool:
            if inner.prune(study, trial):
                return True
            curve: Mapping[int, float] = trial.intermediate_values
            finished = [t.value for t in study.get_trials(deepcopy=False, states=(state("COMPLETE"),))]
            if len(curve) < least or len(finished) < 2:
                return False
            predicted, explained = extrapolated(curve, last)
            return explained > confidence and goal.better(median(finished), predicted)

    made: BasePruner = Curves()
    return made


def extrapolated(curve: Mapping[int, float], last: int) -> tuple[float, float]:
    """What ``a * epoch ** b + c`` (b below 0), fitted to a learning curve, gives at the last epoch, and its R²."""
    x = np.asarray(sorted(curve), dtype=np.float64)
    y = np.asarray([curve[int(step)] for step in x], dtype=np.float64)
    spread = float(((y - y.mean()) ** 2).sum())
    best = (float(y[-1]), 0.0)
    if spread == 0:
        return float(y[-1]), 1.0
    for power in np.linspace(-3.0, -0.05, 60):
        terms = np.stack([x**power, np.ones_like(x)], axis=1)
        (a, c), *_ = np.linalg.lstsq(terms, y, rcond=None)
        explained = 1 - float(((terms @ [a, c] - y) ** 2).sum()) / spread
        if explained > best[1]:
            best = (float(a * last**power + c), explained)
    return best
