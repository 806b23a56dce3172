"""What is checked before an action builds anything heavy. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fiducial.actions.action import Action
from fiducial.actions.export_rules import check_export
from fiducial.actions.models import check_model_files
from fiducial.deploy.providers import unavailable
from fiducial.deploy.quantize.rules import check_quantize
from fiducial.deploy.tensorrt.rules import check_engine, check_library
from fiducial.errors import SHOWN, CheckpointError, DatasetError, Problem, SpecError, one_line
from fiducial.run.console import LOGGER
from fiducial.run.names import fault_of, fields_of
from fiducial.run.ranks import told_of_others
from fiducial.run.run import Run
from fiducial.spec.compose import Composed
from fiducial.task import DataReport, Task


@dataclass(frozen=True)
class Findings:
    """What is wrong or odd about a spec, the model files it names and its dataset; and what the data look like."""

    spec: list[Problem]
    models: list[Problem]
    data: DataReport


def preflight(task: Task[Any], run: Run) -> DataReport:
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
        labels = ", ".join(f"{one_line(label)} {count}" for label, count in list(facts.labels.items())[:SHOWN])
        LOGGER.info("%s: %s %s%s", split, facts.count, facts.unit, f"; labels: {labels}" if labels else "")
    return report


def inspect(task: Task[Any], composed: Composed[Any], action: Action, *, thorough: bool) -> Findings:
    """Everything that can be said before anything heavy is loaded; ``thorough`` looks at every file of the dataset."""
    spec = composed.spec
    splits = task.splits(action)
    if action.name == "automl" and spec.automl.run_final_evaluation:
        splits = tuple(dict.fromkeys((*splits, *task.splits(Action("evaluate", "", splits=("test",))))))
    report = task.check_data(spec, splits, thorough=thorough)
    report.problems = list(dict.fromkeys(report.problems))  # several looks at one broken file
    rules = check_rules(task, spec, action)
    if action.name == "automl":
        from fiducial.automl.study import check_storage

        rules += check_storage(spec.automl.storage)
    return Findings(rules, list(check_model_files(task, composed, action)), report)


def check_rules(task: Task[Any], spec: Any, action: Action) -> list[Problem]:
    """The rules on a spec that span keys: the task's, and those of the sections that every network has."""
    shared: list[Problem] = []
    rules = "train" if action.name == "automl" else action.name
    if action.name == "automl":
        from fiducial.automl.prepare import check_search

        shared = [*check_search(task, spec), *_check_best_names(task, spec)]
    elif action.name == "train":
        shared = [*_check_intervals(spec), *_check_best_names(task, spec)]
    elif action.name in ("evaluate", "inference"):
        shared = list(unavailable(getattr(spec, action.name).providers, f"{action.name}.providers"))
        shared += _check_cluster(task, spec) if action.name == "inference" else ()
    elif action.name == "export":
        shared = list(check_export(spec.export))
    elif action.name == "quantize":
        shared = list(check_quantize(spec))
    elif action.name == "gen_trt_engine":
        engine = spec.gen_trt_engine
        shared = [*check_engine(engine), *check_library(engine.tensorrt.flavor)]
    return [*task.check_spec(spec, rules), *shared]


def _check_cluster(task: Task[Any], spec: Any) -> Iterator[Problem]:
    """What keeps an inference from running on a cluster, where it is to."""
    where = "inference.engine"
    if getattr(spec.inference, "engine", "local") != "ray":
        return
    if find_spec("ray") is None:
        yield Problem(where, "ray is not installed", "pip install 'fiducial[ray]', or set local")
    if others := told_of_others():
        yield Problem(where, f"ray, {others}", "start one process: Ray's workers share the data")
    if task.policy(spec).evaluation_precision != "32-true":
        yield Problem(where, "ray, and half precision (compat: tao)", "set compat: off, or inference.engine=local")


def _check_intervals(spec: Any) -> Iterator[Problem]:
    train = spec.train
    intervals = {"validation_interval": train.validation_interval}
    if train.checkpoint_interval_unit == "epoch":
        intervals["checkpoint_interval"] = train.checkpoint_interval
    for interval, value in intervals.items():
        if value > train.num_epochs:
            found = f"{value} is more than train.num_epochs {train.num_epochs}"
            fix = f"set it to at most {train.num_epochs}, or raise train.num_epochs"
            yield Problem(f"train.{interval}", found, fix)


def _check_best_names(task: Task[Any], spec: Any) -> Iterator[Problem]:
    """Names in the braces of ``train.checkpointer.filename`` that nothing is logged under."""
    where = "train.checkpointer.filename"
    for name in fields_of(spec.train.checkpointer.filename):
        if name not in ("epoch", "step") and task.metrics.find(name, ("train", "val")) is None:
            known = ", ".join(task.metrics.kpis("val"))
            yield Problem(where, f"unknown metric {name!r}", f"use epoch, step or a metric: {known}")
    if fault := fault_of(spec.train.checkpointer.filename):
        yield Problem(where, fault, "write a name such as model_best_{epoch:03d}")


def warn(warnings: list[Problem]) -> None:
    """Print warnings, the first ones of each place in full."""
    for warning in warnings[:SHOWN]:
        LOGGER.warning("%s", warning)
    if len(warnings) > SHOWN:
        LOGGER.warning("… and %d more warnings: the check action lists them all", len(warnings) - SHOWN)
