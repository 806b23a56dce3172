"""What is to get better: one metric, or a weighted sum of several things."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fiducial.errors import Problem, SpecError
from fiducial.metric_table import Metric, MetricTable
from fiducial.spec.knob import replaced
from fiducial.spec.messages import nearest

__all__ = ["MEASURED", "Goal", "Part", "goal_of"]

Direction = Literal["minimize", "maximize"]
MEASURED: Mapping[str, str] = {"latency": "latency_ms", "size": "parameters_m"}
"""Objectives that are measured on the trained model, by the name that their number has."""
_OF: Mapping[str, Direction] = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True)
class Part:
    """One thing that is to get better."""

    name: str
    """Of the number: a KPI of validation, or one of :data:`MEASURED`."""
    direction: Direction
    weight: float = 1.0
    scale: float = 1.0

    def gain(self, value: float) -> float:
        """Its share of the sum, which is to be large."""
        return self.weight * (value if self.direction == "maximize" else -value) / self.scale


@dataclass(frozen=True)
class Goal:
    """What trainings are compared by. The first part is the metric, of which every validation gives a value."""

    parts: tuple[Part, ...]

    @property
    def metric(self) -> str:
        """The KPI."""
        return self.parts[0].name

    @property
    def tested(self) -> str:
        """The same KPI of the test set."""
        return re.sub(r"^val(?=[_ ])", "test", self.metric)

    @property
    def direction(self) -> Direction:
        """Of the number that trainings are compared by: the metric's own where it is alone."""
        return self.parts[0].direction if len(self.parts) == 1 else "maximize"

    @property
    def name(self) -> str:
        """Of that number, for people."""
        return self.metric if len(self.parts) == 1 else f"weighted sum of {', '.join(part.name for part in self.parts)}"

    @property
    def measured(self) -> bool:
        """Whether the trained model has to be measured."""
        return len(self.parts) > 1 and any(part.name in MEASURED.values() for part in self.parts)

    @property
    def mode(self) -> str:
        """Of the metric, in Lightning's word."""
        return "max" if self.parts[0].direction == "maximize" else "min"

    def so_far(self, kpis: Mapping[str, Any]) -> float | None:
        """The number of a validation: without what is measured at the end; None where there is none."""
        return self._sum([part for part in self.parts if part.name not in MEASURED.values()], kpis)

    def total(self, kpis: Mapping[str, Any]) -> float | None:
        """The number of a training."""
        return self._sum(list(self.parts), kpis)

    def better(self, value: float, than: float | None) -> bool:
        """Whether a number is better than another."""
        return than is None or (value < than if self.direction == "minimize" else value > than)

    def _sum(self, parts: list[Part], kpis: Mapping[str, Any]) -> float | None:
        values = [kpis.get(part.name) for part in parts]
        numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if len(numbers) < len(parts):
            return None
        if len(self.parts) == 1:
            return numbers[0]
        return sum(part.gain(number) for part, number in zip(parts, numbers, strict=True))


def goal_of(task: Any, spec: Any) -> Goal:
    """The goal of a spec. Raises: SpecError for metrics that the network does not report, or the other way round."""
    settings = spec.automl
    problems: list[Problem] = []
    main = _part(task, spec, "automl", settings.metric, settings.direction, problems)
    parts = [main]
    for index, wanted in enumerate(settings.objectives):
        where = f"automl.objectives[{index}]"
        part = _part(task, spec, where, wanted.metric, wanted.direction, problems)
        if part is not None and part.name in MEASURED.values() and wanted.scale is None:
            unit = "milliseconds" if wanted.metric == "latency" else "millions of parameters"
            problems.append(Problem(f"{where}.scale", "not set", f"say how many {unit} weigh as much as 1"))
        parts.append(part and Part(part.name, part.direction, wanted.weight, wanted.scale or part.scale))
    if settings.include_latency and not any(wanted.metric == "latency" for wanted in settings.objectives):
        parts.append(Part(MEASURED["latency"], "minimize", settings.latency_weight, settings.latency_scale))
    kept = [part for part in parts if part is not None]
    names = [part.name for part in kept]
    twice = {name for name in names if names.count(name) > 1}
    problems += [Problem("automl.objectives", f"{name} twice", "name each once") for name in sorted(twice)]
    if problems:
        raise SpecError.of(problems)
    scale = settings.metric_scale or kept[0].scale
    return Goal((Part(kept[0].name, kept[0].direction, settings.metric_weight, scale), *kept[1:]))


def _part(task: Any, spec: Any, where: str, name: str, wanted: str | None, problems: list[Problem]) -> Part | None:
    table: MetricTable = task.metrics
    if name in MEASURED and where != "automl":
        if wanted == "maximize":
            problems.append(Problem(f"{where}.direction", f"maximize {name}", "leave the direction out"))
        return Part(MEASURED[name], "minimize")
    name = task.monitor(spec.train)[0] if name == "kpi" else "val_loss" if name == "loss" else name
    found, kpi = _reported(table, name)
    if found is None:
        known = [row for row in table.kpis("val") if table.kpis("val")[row].unit != "text"]
        problems.append(
            Problem(
                f"{where}.metric",
                f"validation reports no {name!r}",
                f"use one of {', '.join(known)}{nearest(name, known)}",
            )
        )
        return None
    own = list(task.check_spec(spec, "train"))
    kept = replaced(spec, "train.checkpointer.monitor", kpi)  # as trainings will have it
    problems += [
        Problem(f"{where}.metric", refused.found, refused.fix)
        for refused in task.check_spec(kept, "train")
        if refused not in own and refused.level == "error"
    ]
    direction = _OF[found.direction]
    if wanted is not None and wanted != direction:
        found_text = f"{wanted} {kpi}, which is better when {'lower' if direction == 'minimize' else 'higher'}"
        problems.append(Problem(f"{where}.direction", found_text, "leave the direction out"))
    return Part(kpi, direction, scale=100.0 if found.unit == "percent" else 1.0)


def _reported(table: MetricTable, name: str) -> tuple[Metric | None, str]:
    """The row of a metric of validation, and its name in status.json."""
    for kpi in (name, f"val_{name}"):
        found = table.find(kpi, ("val",))
        if found is not None and found.unit != "text" and "{" not in kpi:
            full = found.at("val")
            same = kpi.partition("/")[0] == full or ("{class}" in full and kpi.startswith(full.partition("{class}")[0]))
            return found, kpi if same else _kpi_name(found, kpi)
    return None, name


def _kpi_name(found: Metric, logged: str) -> str:
    number = found.class_number(logged)
    group = logged.partition("/")[2]
    return found.at("val").replace("{class}", str(number)) + (f"/{group}" if group else "")
