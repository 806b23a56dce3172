"""From a network's outputs to scores and metrics: the same for validation, ``evaluate`` and ``inference``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from changenet.classify.metric_names import METRICS
from changenet.classify.metrics import classify_report, suggest_margin
from changenet.classify.model import score as score_of
from changenet.classify.outputs import (
    PairResults,
    summary_line,
    unsound,
    unsound_rows,
    write_evaluation,
    write_inference,
)
from changenet.classify.rows import PairTable
from fiducial.errors import MetricError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Kpis, Outputs
from fiducial.run.console import LOGGER
from fiducial.run.ranks import gather

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["PairEvaluator", "PairFiles"]


@dataclass(frozen=True)
class PairFiles:
    """What the files of ``evaluate`` and ``inference`` are made from, and where they go."""

    folder: Path
    spec: ExperimentSpec
    table: PairTable
    facts: Mapping[str, Any]


class PairEvaluator(Evaluator[PairResults]):
    """Collects the scores of every batch on every rank, whatever ran the model.

    Scores above ``margin`` fail. ``groups`` are the component types of all rows, where metrics of each are wanted.
    ``where`` tells messages where a row stands.
    """

    on_host = frozenset({"row", "golden_id"})

    def __init__(
        self,
        stage: Stage,
        *,
        margin: float,
        groups: Sequence[str] | None = None,
        where: Callable[[int], str] = "row {}".format,
        files: PairFiles | None = None,
    ) -> None:
        self.stage, self.margin, self.groups, self.where, self.files = stage, margin, groups, where, files
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        """Take a batch of logits ``(B, classes)`` or distances ``(B,)``. Waits for no device."""
        self._parts.append((batch["row"], batch["label"], score_of(outputs["output"].detach())))

    def finish(self) -> PairResults:
        """Gather from all ranks, put into dataset order, and forget. Raises: MetricError when there is nothing."""
        local = [tuple(part.cpu().numpy() for part in (row, label, score.float())) for row, label, score in self._parts]
        self._parts = []
        # batches in the order of one process, so that every sum is the one that one process would form
        parts = sorted((part for rank in gather(local) for part in rank), key=lambda part: int(part[0][0]))
        if not parts:
            raise MetricError("evaluation", "no rows were scored", "check the CSV of the split")
        row, label, score = (torch.from_numpy(np.concatenate([part[i] for part in parts])) for i in range(3))
        order = torch.argsort(row, stable=True)
        return PairResults(row[order], label[order], score[order])

    def kpis(self, result: PairResults) -> Kpis:
        """The metrics of the stage; in training none of them is known when a score is NaN or infinite.

        Raises: MetricError naming the rows with such a score in ``evaluate`` and ``inference``.
        """
        if rows := unsound_rows(result):
            error = unsound(rows, self.where)
            if self.stage in ("test", "infer"):
                raise error
            found = f"{len(rows)} of {len(result.row)} {self.stage} scores are NaN or infinite"
            LOGGER.warning("%s: no metric is known (first: %s)", found, error.problems[0].where)
            return {name: math.nan for name, metric in METRICS.kpis(self.stage).items() if metric.unit != "loss"}
        if self.stage == "infer":
            return {}
        known = self.groups if self.groups and result.row.max() < len(self.groups) else None
        names = None if known is None else [known[row] for row in result.row.tolist()]
        report = classify_report(result.score, result.label, self.margin, groups=names)
        return {**report.kpis(self.stage, per_group=names is not None)}

    def write(self, result: PairResults, facts: Mapping[str, Any]) -> tuple[Path, ...]:
        """``inference.csv``; or ``evaluate.csv``, ``metrics.json`` and ``report.html``."""
        if self.files is None:
            return ()
        files, folder = self.files, self.files.folder
        if self.stage == "infer":
            path = write_inference(folder, files.table, result, self.margin)
            LOGGER.info("scores: %s", path)
            return (path,)
        report = write_evaluation(folder, files.spec, files.table, result, self.margin, {**files.facts, **facts})
        LOGGER.info("%s", summary_line(report))
        if report.total.num_defects:
            margin = suggest_margin(result.score, result.label)
            LOGGER.info("the largest eval_margin that misses no defect of this data: %s (now %g)", margin, self.margin)
        LOGGER.info("report: %s", folder / "report.html")
        return tuple(folder / name for name in ("metrics.json", "evaluate.csv", "report.html"))
