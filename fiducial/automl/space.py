"""What is searched: which keys of a spec, and where.

A key is searched when the knob says so (or the spec names it), unless the task says that it has no effect under this
spec. Its range is, first found first taken: the spec's ``custom_param_ranges``, the knob's ``search``, the ends of its
schema where both are finite; else it follows from the spec's value. All but the first are widened to the spec's value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from fiducial.automl.dimension import Dimension
from fiducial.automl.ranges import custom_ranges, dimension_of, fault_of
from fiducial.errors import Problem, SpecError
from fiducial.spec.items import set_item
from fiducial.spec.knob import Key, plain, replaced, walk
from fiducial.spec.overrides import set_value
from fiducial.spec.shorthands import key_meant
from fiducial.spec.value_types import OBJECT_TYPES

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from fiducial.task import Task

__all__ = ["Space", "search_space", "value_at", "with_values"]

_LIFECYCLE = (
    *("automl", "wandb", "clearml", "task", "model_name", "encryption_key", "results_dir", "train.results_dir"),
    *("train.resume_training_checkpoint_path", "train.checkpoint", "train.keep_checkpoints"),
    *("train.validation_interval", "train.num_epochs", "train.seed"),
    *("train.num_gpus", "train.gpu_ids", "train.num_nodes"),
)
"""Keys that a search itself sets, or that are no matter of a model."""


@dataclass(frozen=True)
class Space:
    """The searched keys, those that depend on others last; ``left_out`` says why others are not searched."""

    dimensions: tuple[Dimension, ...]
    left_out: Mapping[str, str]
    fixed: Mapping[str, Any]
    """Values of keys that others depend on and that are not searched."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna has them."""
        return {dimension.path: dimension.distribution() for dimension in self.dimensions}

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The spec's values for what a sampler chose."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            value = dimension.value(params[dimension.path])
            if dimension.relation is not None:
                value = dimension.relation.applied(value, {**self.fixed, **found}, dimension.kind == "int")
            found[dimension.path] = value
        return found

    def own_params(self) -> dict[str, Any]:
        """What a sampler would have to choose for the spec's values."""
        return {dimension.path: dimension.param(dimension.own) for dimension in self.dimensions}

    def own_values(self) -> dict[str, Any]:
        """The spec's values."""
        return {dimension.path: dimension.own for dimension in self.dimensions}

    def plain(self) -> dict[str, Any]:
        """What makes it the same space in another run."""
        return {dimension.path: dimension.plain() for dimension in self.dimensions}


def search_space(task: Task[Any], spec: Any, *, warm: bool = False) -> Space:
    """The space of a spec. ``warm``: trainings begin with weights of others, so nothing that shapes them is searched.

    Raises: SpecError with every problem.
    """
    settings = spec.automl
    keys = dict(_leaves(type(spec)))
    meant = partial(key_meant, keys=keys, shorthands=task.shorthands)
    customs, problems = custom_ranges(settings.custom_param_ranges or {}, keys, meant)
    names = list(_wanted(settings, keys, customs, meant, problems))
    named = set(settings.automl_hyperparameters or ()) | set(customs)
    varied = frozenset(name for name in names if not _matches(name, settings.pinned))
    dead = dict(task.unsearched(spec, varied, warm=warm))
    chosen: list[Dimension] = []
    left_out: dict[str, str] = {}
    for name in names:
        reason = _reason(name, keys[name], settings, dead)
        if reason is None:
            dimension = dimension_of(keys[name], value_at(spec, name), customs.get(name, {}), problems)
            if dimension is not None:
                chosen.append(dimension)
                problems += _refused(task, spec, keys[name], dimension.options)
            continue
        left_out[name] = reason
        if name in named and not _matches(name, settings.pinned):
            problems.append(Problem(_where(settings, name), f"{name} is not searched: {reason}", "leave it out"))
    ordered, fixed = _ordered(chosen, spec, keys, meant, problems)
    if not ordered and not problems:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3]) or "no key is marked"
        problems.append(
            Problem("automl.automl_hyperparameters", f"nothing to search ({why})", "name keys such as train.optim.lr")
        )
    if problems:
        raise SpecError.of(problems)
    return Space(tuple(ordered), left_out, fixed)


def _refused(task: Task[Any], spec: Any, key: Key, options: Collection[Any]) -> Iterator[Problem]:
    """Options that the task refuses, of a key that may have more than it is documented with."""
    for option in options:
        if key.meta.options and option not in key.meta.options:
            for problem in task.check_spec(replaced(spec, key.path, option), "train"):
                if problem.where == key.path and problem.level == "error":
                    where = f"automl.custom_param_ranges.{key.path}.valid_options"
                    yield Problem(where, problem.found, problem.fix)


def _ordered(
    chosen: list[Dimension], spec: Any, keys: Mapping[str, Key], meant: Callable[[str], str], problems: list[Problem]
) -> tuple[list[Dimension], dict[str, Any]]:
    """The dimensions, each after those that it depends on; and the spec's values of the keys that others depend on."""
    by_path = {d.path: d for d in sorted(chosen, key=lambda dimension: dimension.relation is not None)}
    fixed: dict[str, Any] = {}
    for path, dimension in by_path.items():
        where = f"automl.custom_param_ranges.{path}.depends_on"
        for other in dimension.relation.keys if dimension.relation else ():
            if other not in keys:
                problems.append(Problem(where, other, meant(other)))
                continue
            fixed[other] = value_at(spec, other)
            if keys[other].value_type not in ("int", "float", "ordered_int") or fixed[other] is None:
                problems.append(Problem(where, f"{other} is no number", "name a key that is one"))
    try:
        order = TopologicalSorter({p: d.relation.keys if d.relation else () for p, d in by_path.items()}).static_order()
        ordered = [by_path[path] for path in order if path in by_path]
    except CycleError as error:
        path, *others = error.args[1]
        found, fix = f"a circle: {' on '.join((path, *others))}", "leave one of them out"
        problems.append(Problem(f"automl.custom_param_ranges.{path}.depends_on", found, fix))
        return [], {}
    if not problems:
        problems += [p for d in ordered if d.relation and (p := _unfit(d, keys[d.path], by_path, fixed)) is not None]
    return ordered, fixed


def _unfit(
    dimension: Dimension, key: Key, by_path: Mapping[str, Dimension], fixed: Mapping[str, Any]
) -> Problem | None:
    """Where a value ends that follows the ends of what it depends on, if it cannot be there."""
    relation = dimension.relation
    assert relation is not None
    for side in (0, 1):
        others = {name: by_path[name].ends[side] if name in by_path else fixed[name] for name in relation.keys}
        value = relation.applied(dimension.ends[side], others, dimension.kind == "int")
        if fault := fault_of(key, value):
            told = ", ".join(f"{name} {number:g}" for name, number in others.items())
            where = f"automl.custom_param_ranges.{dimension.path}"
            fix = f"give {', '.join(others)} a range that leaves room"
            return Problem(where, f"{value:g}, with {told}: {fault}", fix)
    return None


def _wanted(
    settings: Any,
    keys: Mapping[str, Key],
    customs: Mapping[str, Any],
    meant: Callable[[str], str],
    problems: list[Problem],
) -> Iterator[str]:
    """The keys that are to be searched, as far as they may."""
    where = "automl.automl_hyperparameters"
    if settings.automl_hyperparameters is None:
        chosen = [name for name, key in keys.items() if key.automl or name in customs]
    else:
        chosen = list(dict.fromkeys(settings.automl_hyperparameters))
        idle = [name for name in customs if name not in chosen]
        fix = f"add it to {where}, or leave the range out"
        problems += [Problem(f"automl.custom_param_ranges.{name}", "is not searched", fix) for name in idle]
    for name in settings.pinned:
        if not any(_matches(key, [name]) for key in keys):
            problems.append(Problem("automl.pinned", f"unknown key {name}", meant(name)))
    for name in chosen:
        key = keys.get(name)
        if key is None:
            problems.append(Problem(where, f"unknown key {name}", meant(name)))
        elif name.startswith(_LIFECYCLE):
            problems.append(Problem(where, f"{name} is set by the search, or no matter of a model", "leave it out"))
        elif not name.startswith("train.") and f"{name.partition('.')[0]}.results_dir" in keys:
            problems.append(Problem(where, f"{name} is of another action: no training uses it", "leave it out"))
        elif key.automl is False and name not in customs and not settings.override_automl_disabled_params:
            fix = "leave it out, or set automl.override_automl_disabled_params=true"
            problems.append(Problem(where, f"{name} is marked as not to be searched", fix))
        else:
            yield name


def _reason(name: str, key: Key, settings: Any, dead: Mapping[str, str]) -> str | None:
    """Why a key is not searched; None when it is."""
    if _matches(name, settings.pinned):
        return "pinned"
    if key.meta.ignored:
        return key.meta.ignored
    return next((why for start, why in dead.items() if _matches(name, [start])), None)


def _matches(name: str, starts: Collection[str]) -> bool:
    return any(name == start or name.startswith((f"{start.rstrip('.')}.", f"{start}[")) for start in starts)


def _where(settings: Any, name: str) -> str:
    named = name in (settings.automl_hyperparameters or ())
    return "automl.automl_hyperparameters" if named else f"automl.custom_param_ranges.{name}"


def _leaves(kind: Any) -> Iterator[tuple[str, Key]]:
    for key in walk(kind):
        if key.section is None and (key.value_type not in OBJECT_TYPES):
            yield key.path, key
            for item in key.items():
                yield item.path, item


def value_at(spec: Any, path: str) -> Any:
    """The value of a key, also of a list's item (``cls_weight[1]``)."""
    value = spec
    for part in path.split("."):
        name, _, index = part.partition("[")
        value = getattr(value, name)
        if index:
            value = value[int(index.rstrip("]"))]
    return plain(value)


def with_values(kind: Any, tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain tree of a spec, changed in place. Raises: SpecError for an item that its list does not have."""
    for path, value in values.items():
        name, _, index = path.partition("[")
        problem = (
            set_item(kind, tree, name, int(index.rstrip("]")), value)
            if index
            else set_value(tree, path.split("."), value)
        )
        if problem:
            raise SpecError(path, problem, "check the key")
    return tree
