"""The spec of every training of a search, made from the user's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiducial.actions.action import Action
from fiducial.automl.algorithms import ENDS_EARLY, Plan, plan_of
from fiducial.automl.goal import Goal, goal_of
from fiducial.automl.places import Place
from fiducial.automl.space import Space, search_space, with_values
from fiducial.automl.trial import Order
from fiducial.errors import Problem, SpecError, UserError
from fiducial.run.ranks import told_of_others
from fiducial.spec.compose import changed
from fiducial.spec.knob import plain, walk
from fiducial.spec.messages import nearest
from fiducial.task import Task

__all__ = ["EVALUATE", "Prepared", "check_search", "prepare"]

EVALUATE = Action("evaluate", "", splits=("test",))
"""The action that the best model is verified by, as far as its data are concerned."""


@dataclass(frozen=True)
class Prepared:
    """A search that may begin."""

    task: Task[Any]
    spec: Any
    space: Space
    goal: Goal
    plan: Plan

    @property
    def terminal(self) -> bool:
        """Whether a training counts by its last epoch."""
        return bool(self.spec.automl.automl_checkpoint_retention_strategy == "terminal")

    @property
    def evaluated_on(self) -> str:
        """What the best model is verified on, in words: not every network has a test set."""
        return "test set" if "test" in self.task.splits(EVALUATE) else "validation data"

    @property
    def seed(self) -> int:
        """Of the choice of values."""
        given = self.spec.automl.seed
        return int(max(0, self.spec.train.seed) if given is None else given)

    def tree(self, order: Order, folder: Path, place: Place | None = None) -> dict[str, Any]:
        """The whole spec of a training, whose results go to its own folder below ``folder``."""
        tree = plain(self.spec)
        kind = type(self.spec)
        defaults = plain(kind.model_fields["automl"].get_default(call_default_factory=True))
        tree |= {"automl": defaults, "automl_policy": "off", "results_dir": str(folder / order.folder)}
        train = tree["train"]
        train |= {"results_dir": None, "resume_training_checkpoint_path": None}
        train |= {"num_epochs": order.epochs, "seed": order.seed}
        train |= self._checkpoints(order.epochs)
        if place is not None and place.gpus is not None:
            train |= {"num_gpus": place.gpus, "gpu_ids": list(range(place.gpus))}
        return with_values(kind, tree, order.values)

    def written(self, tree: dict[str, Any]) -> dict[str, Any]:
        """What of a training's spec its process is given: all that is not a default."""
        kept = changed(type(self.spec), tree)
        return {"task": tree["task"], **kept} if "task" in tree else kept

    def _checkpoints(self, epochs: int) -> dict[str, Any]:
        """Validation as often as a training may end, and one checkpoint: of the best epoch, or of the last."""
        settings, train = self.spec.automl, self.spec.train
        every = min(train.validation_interval, epochs)
        if self.plan.algorithm in ENDS_EARLY:
            every = min(every, self.plan.least_epochs)
        if self.plan.algorithm == "pbt":
            every = math.gcd(every, settings.automl_eval_interval)
            return {
                "validation_interval": every,
                "checkpoint_interval": settings.automl_eval_interval,
                "checkpoint_interval_unit": "epoch",
                "keep_checkpoints": None,
                "checkpointer": {**plain(train.checkpointer), "enable_topk": False},
            }
        best = {
            "enable_topk": not self.terminal,
            "replace_periodic": not self.terminal,
            "monitor": self.goal.metric,
            "mode": self.goal.mode,
            "save_top_k": 1,
            "dirpath": None,
        }
        return {
            "validation_interval": every,
            "checkpoint_interval": every,
            "checkpoint_interval_unit": "epoch",
            "keep_checkpoints": 1,
            "checkpointer": {**plain(train.checkpointer), **best},
        }

    def identity(self) -> dict[str, Any]:
        """What another run must have in common to go on with the same search."""
        searched = {dimension.path for dimension in self.space.dimensions}
        return {
            "network": self.task.network,
            "task": self.task.name,
            "algorithm": self.plan.algorithm,
            "goal": [[part.name, part.direction, part.weight, part.scale] for part in self.goal.parts],
            "epochs": self.plan.epochs,
            "terminal": self.terminal,
            "seed": self.seed,
            "search": self.space.plain(),
            "spec": dict(_kept(self.task, self.spec, searched)),
        }


def _kept(task: Task[Any], spec: Any, searched: set[str]) -> Iterator[tuple[str, Any]]:
    """Values of a spec that make a training what it is, beside those that are searched."""
    fields = type(spec).model_fields
    others = {name for name in fields if hasattr(getattr(spec, name), "results_dir") and name != "train"}
    lists = {path.partition("[")[0] for path in searched}
    own = ("train.checkpoint", "train.keep_checkpoints", "train.validation_interval", "train.num_epochs", "train.seed")
    for key in walk(type(spec)):
        top = key.path.partition(".")[0]
        if key.section is not None or top in others or key.path in lists or key.path.startswith(own):
            continue
        if not task.resume.is_free(key.path):
            value = spec
            for part in key.path.split("."):
                value = getattr(value, part)
            yield key.path, plain(value)


def prepare(task: Task[Any], spec: Any) -> Prepared:
    """The search of a spec. Raises: SpecError with every problem; MissingDependencyError without Optuna."""
    problems: list[Problem] = []
    goal, space = None, None
    warm = spec.automl.automl_algorithm == "pbt"
    try:
        goal = goal_of(task, spec)
    except UserError as error:
        problems += error.problems
    try:
        space = search_space(task, spec, warm=warm)
        space = _continuable(task, space) if warm else space
    except UserError as error:
        problems += error.problems
    problems += _rules(task, spec)
    if goal is None or space is None or problems:
        raise SpecError.of(problems)
    return Prepared(task, spec, space, goal, plan_of(spec, space, goal))


def check_search(task: Task[Any], spec: Any) -> Iterator[Problem]:
    """What is wrong with the settings of a search."""
    try:
        prepare(task, spec)
    except UserError as error:
        yield from error.problems


def _rules(task: Task[Any], spec: Any) -> Iterator[Problem]:
    settings = spec.automl
    if others := told_of_others():
        fix = "start one process: each training starts those of its own, train.num_gpus of them"
        yield Problem("automl", others, fix)
    if spec.train.num_nodes > 1:
        found = f"{spec.train.num_nodes}, but each training of a search is on one machine"
        yield Problem("train.num_nodes", found, "set 1; several machines may give the same command")
    shown = settings.final_evaluation_metric
    if shown and task.metrics.find(shown, ("test",)) is None:
        known = list(task.metrics.kpis("test"))
        fix = f"use one of {', '.join(known)}{nearest(shown, known)}"
        yield Problem("automl.final_evaluation_metric", f"evaluate reports no {shown!r}", fix)
    if spec.train.resume_training_checkpoint_path:
        found, fix = "a search begins its trainings anew", "leave it out; train.pretrained_model_path gives weights"
        yield Problem("train.resume_training_checkpoint_path", found, fix)
    unit = settings.epoch_multiplier
    least = settings.automl_min_epochs * unit
    most = settings.automl_max_epochs * unit if settings.automl_max_epochs else spec.train.num_epochs
    if settings.automl_algorithm in ENDS_EARLY and least > most:
        found = f"{settings.automl_min_epochs}, in units of {unit} epochs, is more than the {most} of a training"
        yield Problem("automl.automl_min_epochs", found, "lower it or epoch_multiplier, or train longer")
    if settings.automl_algorithm == "pbt" and (settings.objectives or settings.include_latency):
        name = "objectives" if settings.objectives else "include_latency"
        yield Problem(f"automl.{name}", "pbt compares by the metric alone", "leave it out, or use bohb")


def _continuable(task: Task[Any], space: Space) -> Space:
    """Without what a training that goes on from a checkpoint keeps, or must not change. Raises: SpecError."""
    fixed: Mapping[str, str] = {
        **dict.fromkeys(task.resume.kept, "a training that goes on keeps it"),
        **dict.fromkeys(task.resume.fixed, "a training that goes on cannot change it"),
    }

    def why(path: str) -> str | None:
        return next((reason for start, reason in fixed.items() if path.startswith(start)), None)

    kept = tuple(dimension for dimension in space.dimensions if why(dimension.path) is None)
    out = {d.path: reason for d in space.dimensions if (reason := why(d.path)) is not None}
    if not kept:
        raise SpecError("automl.automl_hyperparameters", "nothing that pbt could change", "name train.optim.lr, say")
    return Space(kept, {**space.left_out, **out}, space.fixed)
