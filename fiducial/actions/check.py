"""``check``: everything that is wrong or odd about a spec and its files, without opening a model."""

from __future__ import annotations

from typing import Any

from fiducial.actions.action import Action
from fiducial.actions.models import not_trained_yet
from fiducial.actions.preflight import check_rules, inspect
from fiducial.data.checks import shortened
from fiducial.errors import Problem
from fiducial.run.console import LOGGER
from fiducial.spec.compose import Composed, to_yaml
from fiducial.task import Task


def check(task: Task[Any], action: Action, composed: Composed[Any], *, spec_only: bool) -> int:
    """Print what was found; returns the number of errors. Writes no files.

    ``spec_only`` looks at the spec alone, prints it resolved on stdout, and lists keys that are still ``???``.
    """
    spec = composed.spec
    if spec_only:
        print(composed.yaml, end="")
        for key in composed.missing:
            LOGGER.info("%s: ??? - to be filled in", key)
        problems = check_rules(task, spec, action)
    else:
        found = inspect(task, composed, action, thorough=True)
        if found.data.facts:
            print(to_yaml({split: facts.plain() for split, facts in found.data.facts.items()}), end="")
        models = (not_trained_yet(problem, spec, action) for problem in found.models)
        problems = [*found.spec, *models, *found.data.problems]
    problems += [Problem(key, "still ???", "fill it in") for key in composed.missing if not spec_only]
    for problem in shortened(problems):
        (LOGGER.error if problem.level == "error" else LOGGER.warning)("%s", problem)
    errors = sum(problem.level == "error" for problem in problems)
    LOGGER.info("%d error(s), %d warning(s)", errors, len(problems) - errors + len(composed.warnings))
    return errors
