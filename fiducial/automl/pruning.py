"""What ends a training early, beside Optuna's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fiducial.automl.goal import Goal
from fiducial.automl.study import state
from fiducial.errors import optional

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

__all__ = ["extrapolated", "own_rows", "with_curves"]


def own_rows(inner: BasePruner) -> BasePruner:
    """The same rule, by which a sampler still sees all trainings: Optuna shows it those of one bracket alone."""
    pruners = optional("optuna.pruners", extra="automl")

    class Wrapped(pruners.BasePruner):  # type: ignore[misc,name-defined]
        def prune(self, study: Any, trial: Any) -> bool:
            return inner.prune(study, trial)

    made: BasePruner = Wrapped()
    return made


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
