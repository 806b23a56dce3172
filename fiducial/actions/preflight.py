"""What is checked before an action builds anything heavy. No torch."""

from __future__ import annotations

from typing import Any

from fiducial.errors import SHOWN, DatasetError, Problem, SpecError
from fiducial.run.console import LOGGER
from fiducial.run.run import Run
from fiducial.task import DataReport, Task, load


def preflight(task: Task, run: Run) -> DataReport:
    """Check the spec's rules and the dataset of an action; warnings are printed.

    Raises: SpecError or DatasetError listing every problem of the spec and of the data together.
    """
    problems, report = inspect(task, run.spec, run.action, thorough=False)
    errors = [problem for problem in problems if problem.level == "error"]
    data_errors = [problem for problem in report.problems if problem.level == "error"]
    warn([problem for problem in (*problems, *report.problems) if problem.level == "warning"])
    if errors:
        raise SpecError.of([*errors, *data_errors])
    if data_errors:
        raise DatasetError.of(data_errors)
    for split, facts in report.facts.items():
        labels = ", ".join(f"{label} {count}" for label, count in list(facts.get("labels", {}).items())[:SHOWN])
        LOGGER.info("%s: %s rows%s", split, facts.get("rows"), f"; labels: {labels}" if labels else "")
    return report


def inspect(task: Task, spec: Any, action: str, *, thorough: bool) -> tuple[list[Problem], DataReport]:
    """The problems of a spec, and what its dataset looks like."""
    return list(load(task.check_spec)(spec, action)), load(task.check_data)(spec, action, thorough)


def warn(warnings: list[Problem]) -> None:
    """Print warnings, the first ones of each place in full."""
    for warning in warnings[:SHOWN]:
        LOGGER.warning("%s", warning)
    if len(warnings) > SHOWN:
        LOGGER.warning("… and %d more warnings: the check action lists them all", len(warnings) - SHOWN)
