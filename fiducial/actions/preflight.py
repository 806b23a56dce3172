"""What is checked before an action builds anything heavy. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fiducial.actions.models import check_model_files
from fiducial.errors import SHOWN, CheckpointError, DatasetError, Problem, SpecError
from fiducial.run.console import LOGGER
from fiducial.run.run import Run
from fiducial.spec.compose import Composed
from fiducial.task import DataReport, Task, load


@dataclass(frozen=True)
class Findings:
    """What is wrong or odd about a spec, the model files it names and its dataset; and what the data look like."""

    spec: list[Problem]
    models: list[Problem]
    data: DataReport


def preflight(task: Task, run: Run) -> DataReport:
    """Check the spec's rules, the model files and the dataset of an action; warnings are printed.

    Raises: SpecError, CheckpointError or DatasetError, after the first of these kinds, listing every problem together.
    """
    found = inspect(task, run.composed, run.action, thorough=False)
    report = found.data
    kinds = {SpecError: found.spec, CheckpointError: found.models, DatasetError: report.problems}
    warn([problem for problems in kinds.values() for problem in problems if problem.level == "warning"])
    errors = {kind: [p for p in problems if p.level == "error"] for kind, problems in kinds.items()}
    for kind, first in errors.items():
        if first:
            raise kind.of(problem for problems in errors.values() for problem in problems)
    for split, facts in report.facts.items():
        labels = ", ".join(f"{label} {count}" for label, count in list(facts.get("labels", {}).items())[:SHOWN])
        LOGGER.info("%s: %s rows%s", split, facts.get("rows"), f"; labels: {labels}" if labels else "")
    return report


def inspect(task: Task, composed: Composed[Any], action: str, *, thorough: bool) -> Findings:
    """Everything that can be said before anything heavy is loaded; ``thorough`` looks at every file of the dataset."""
    spec = composed.spec
    report: DataReport = load(task.check_data)(spec, action, thorough)
    report.problems = list(dict.fromkeys(report.problems))  # several looks at one broken file
    return Findings(list(load(task.check_spec)(spec, action)), list(check_model_files(task, composed, action)), report)


def warn(warnings: list[Problem]) -> None:
    """Print warnings, the first ones of each place in full."""
    for warning in warnings[:SHOWN]:
        LOGGER.warning("%s", warning)
    if len(warnings) > SHOWN:
        LOGGER.warning("… and %d more warnings: the check action lists them all", len(warnings) - SHOWN)
