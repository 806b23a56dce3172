"""A model before and after it was quantized: what it measures, how far its outputs moved, its size and its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiducial.deploy.digest import model_files
from fiducial.metric_table import Metric, MetricTable
from fiducial.prediction import Graph, Kpis, Predictor

__all__ = ["Measured", "call", "file_size", "largest_move", "latency", "lost_points"]

WARM_UP = 3
LEAST_RUNS, MOST_RUNS = 5, 200
SECONDS = 3.0
"""How long a model is timed, unless its least runs take longer."""


@dataclass(frozen=True)
class Measured:
    """One of the two models."""

    path: Path
    runtime: str
    bytes: int
    seconds: float
    """The fastest call with one item."""
    outputs: list[dict[str, Tensor]] = field(repr=False)
    kpis: Kpis | None = None
    """Of the labelled test data; None where there are none."""


def call(predictor: Predictor, graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The graph's results for a batch by input names; in torch by the plain network: it keeps nothing between calls."""
    if predictor.network is None:
        outputs = predictor.predict({item.batch_key: inputs[name] for name, item in graph.inputs.items()})
        return {name: output.cpu() for name, output in outputs.items()}
    device = predictor.device
    with torch.inference_mode():
        results = getattr(predictor.network, predictor.results_call)
        given = results(*(inputs[name].to(device) for name in graph.inputs))
    several = isinstance(given, tuple | list)
    named = zip(graph.outputs, given, strict=True) if several else zip(graph.results, (given,), strict=True)
    return {name: output.float().cpu() for name, output in named if name in graph.results}


def latency(predictor: Predictor, graph: Graph, inputs: Mapping[str, Tensor]) -> float:
    """Seconds of the fastest call: what else a machine does makes calls slower, never faster."""
    for _ in range(WARM_UP):
        call(predictor, graph, inputs)
    fastest, started = math.inf, time.perf_counter()
    for number in range(MOST_RUNS):
        before = time.perf_counter()
        call(predictor, graph, inputs)
        fastest = min(fastest, time.perf_counter() - before)
        if number + 1 >= LEAST_RUNS and time.perf_counter() - started > SECONDS:
            break
    return fastest


def file_size(path: Path) -> int:
    """Bytes of a model file with the weights beside it."""
    return sum(part.stat().st_size for part in model_files(path))


def largest_move(before: Sequence[Mapping[str, Tensor]], after: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Of each output, the largest difference in shares of its range; infinite where an output is no number."""
    found: dict[str, float] = {}
    for name in before[0] if before else ():
        old, new = (torch.cat([part[name].flatten() for part in parts]).double() for parts in (before, after))
        reach = float(old.max() - old.min()) or float(old.abs().max()) or 1.0
        moved = float((old - new).abs().max()) / reach
        found[name] = moved if math.isfinite(moved) else math.inf
    return found


def lost_points(table: MetricTable, before: Kpis, after: Kpis) -> dict[str, tuple[Metric, float]]:
    """By KPI, how many points (hundredths, percent) it lost, and its row; negative where it is better now."""
    found: dict[str, tuple[Metric, float]] = {}
    for name in before.keys() & after.keys():
        metric, old, new = table.find(name, ("test",)) or table.find(name), before[name], after[name]
        if metric is None or metric.unit not in ("fraction", "percent"):
            continue
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in (old, new)):
            continue
        change: Any = (new - old) * (100 if metric.unit == "fraction" else 1)  # type: ignore[operator]
        found[name] = metric, float(-change if metric.direction == "max" else change)
    return found
