"""The table in which a task says what it measures: names, direction, unit, meaning. No torch.

Everything that speaks of metrics reads it: the choice of the best checkpoint, the checks of a spec, the logs, the
documentation, a hyper-parameter search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = ["Direction", "Metric", "MetricTable", "Stage", "Unit"]

Stage = Literal["train", "val", "test", "infer"]
"""Where numbers come from: training batches, validation in training, ``evaluate``, ``inference``."""
Direction = Literal["min", "max"]
Unit = Literal["loss", "fraction", "percent", "pixels", "count", "text"]
"""``fraction`` is 0..1, ``percent`` 0..100, ``loss`` unbounded; ``text`` is no number and only shown."""

_STAGES: tuple[Stage, ...] = ("train", "val", "test", "infer")
_HELD_OUT: tuple[Stage, ...] = ("val", "test")


@dataclass(frozen=True)
class Metric:
    """One row. ``{stage}`` and ``{class}`` in a name stand for the stage and for a class number."""

    name: str
    """The KPI's name in status.json: ``{stage}_acc``, ``{stage}_iou_{class}``, ``{stage} Precision at Rank 1``."""
    direction: Direction
    unit: Unit
    meaning: str
    stages: tuple[Stage, ...] = _HELD_OUT
    logged: tuple[str, ...] | None = None
    """Its names among the logged scalars; None: the KPI's own. Empty: the training module logs it itself."""
    val_alias: str = ""
    """A second name among the logged scalars, of validation only."""
    grouped: bool = False
    """Whether ``<name>/<group>`` exists too: the same of one group of items."""
    tao: bool = False
    """Whether TAO has it, under this name and with this meaning."""

    @property
    def short(self) -> str:
        """The name without its stage: ``acc``."""
        return self.name.removeprefix("{stage}_")

    def at(self, stage: Stage) -> str:
        """The KPI's name in a stage, with ``{class}`` left open."""
        return self.name.replace("{stage}", stage)

    def logged_at(self, stage: Stage) -> tuple[str, ...]:
        """Its names among the logged scalars of a stage."""
        names = (self.name,) if self.logged is None and self.unit != "text" else self.logged or ()
        alias = (self.val_alias,) if stage == "val" and self.val_alias else ()
        return tuple(name.replace("{stage}", stage) for name in (*names, *alias))

    def names(self, stage: Stage) -> tuple[str, ...]:
        """The KPI's name in a stage, then its other names in the logs."""
        return tuple(dict.fromkeys((self.at(stage), *self.logged_at(stage))))

    def class_number(self, full_name: str) -> int | None:
        """The class that a full name speaks of; None where it speaks of none."""
        for stage in self.stages:
            for name in self.names(stage):
                if (found := _pattern(name).fullmatch(full_name)) and "class_" in found.groupdict():
                    return int(found["class_"])
        return None


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{class\}", r"(?P<class_>\d+)"))


@dataclass(frozen=True)
class MetricTable:
    """The metrics of a task; ``default`` chooses the best checkpoint where the spec does not."""

    metrics: tuple[Metric, ...]
    default: str
    main: str = ""
    """The name of the row that sums up a model, of which a quantized one should lose little."""

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.metrics)

    def find(self, full_name: str, stages: Iterable[Stage] = _STAGES) -> Metric | None:
        """The row of a KPI's or a logged name in one of the stages; None when there is none."""
        base, mark, _ = full_name.partition("/")
        for pattern, metric, stage in self._patterns:
            if stage in stages and (
                pattern.fullmatch(full_name) or (mark and metric.grouped and pattern.fullmatch(base))
            ):
                return metric
        return None

    def direction(self, full_name: str) -> Direction:
        """Which way a metric is better; unknown names count as losses do."""
        found = self.find(full_name)
        return found.direction if found else "min"

    def logged(self, kpi: str, stage: Stage) -> tuple[str, ...]:
        """The names that a KPI is logged under: none where the training module logs it itself, or it is a text."""
        found = self.find(kpi, (stage,))
        if found is None:
            return (kpi,)
        number, group = found.class_number(kpi), kpi.removeprefix(found.at(stage))
        end = group if found.grouped and group.startswith("/") else ""
        return tuple(f"{name.replace('{class}', str(number))}{end}" for name in found.logged_at(stage))

    def kpis(self, stage: Stage) -> dict[str, Metric]:
        """KPI name to row, for one stage; ``{class}`` is left open."""
        return {metric.at(stage): metric for metric in self.metrics if stage in metric.stages}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Metric, Stage]]:
        return [
            (_pattern(name), metric, stage)
            for metric in self.metrics
            for stage in metric.stages
            for name in metric.names(stage)
        ]
