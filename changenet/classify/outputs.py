"""From scores to decisions, metrics and files. The same code serves validation, ``evaluate`` and ``inference``."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from changenet.classify.data import PairReader
from changenet.classify.metrics import ClassifyReport, classify_report, suggest_margin
from changenet.classify.model import score as score_of
from changenet.classify.rows import PairTable
from fiducial.errors import MetricError
from fiducial.run.ranks import gather

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

SCORE_COLUMN = "siamese_score"
DECISION_COLUMN = "decision"
DECISIONS = ("PASS", "FAIL")


@dataclass(frozen=True)
class PairResults:
    """Scores in dataset order, ``(n,)`` on the CPU: ``row`` int64, ``label`` int64 (-1 unknown), ``score`` float32."""

    row: Tensor
    label: Tensor
    score: Tensor
    loss: float | None
    """Mean of the batch losses, weighted by batch size; None where no loss was given."""


class PairEvaluator:
    """Collects the outputs of every batch on every rank, whatever ran the model."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def update(self, output: Tensor, batch: Mapping[str, Any], loss: Tensor | None = None) -> None:
        """Take a batch of raw outputs (logits or distances). Waits for no device."""
        score = score_of(output.detach())
        self._parts.append((batch["row"], batch["label"], score, None if loss is None else loss.detach()))

    def finish(self) -> PairResults:
        """Gather from all ranks, put into dataset order, and forget. Raises: MetricError when there is nothing."""
        local = [
            (row.cpu().numpy(), label.cpu().numpy(), score.float().cpu().numpy(), None if loss is None else float(loss))
            for row, label, score, loss in self._parts
        ]
        self._parts = []
        # batches in the order of one device, so that every sum is the one that one device would form
        parts = sorted((part for rank in gather(local) for part in rank), key=lambda part: int(part[0][0]))
        if not parts:
            raise MetricError("evaluation", "no rows were scored", "check the CSV of the split")
        row, label, score = (torch.from_numpy(np.concatenate([part[i] for part in parts])) for i in range(3))
        order = torch.argsort(row, stable=True)
        losses = [(part[3], len(part[0])) for part in parts if part[3] is not None]
        total = sum(size for _, size in losses)
        mean = sum(loss * size for loss, size in losses) / total if total else None
        return PairResults(row[order], label[order], score[order], mean)


def group_names(table: PairTable, column: str | None) -> list[str]:
    """The component type of every row: the column that ``dataset.classify.group_by`` names, else the object's name.

    Raises: MetricError when the CSV lacks the column.
    """
    name = column or "object_name"
    if name not in table.columns:
        known = ", ".join(table.columns)
        raise MetricError(
            "dataset.classify.group_by", f"no column {name!r} in {table.csv_path}", f"use one of: {known}"
        )
    return [row.fields[name] for row in table.rows]


def write_inference(folder: Path, table: PairTable, results: PairResults, margin: float) -> Path:
    """``inference.csv``: the input's columns and rows as they were, the score, and the decision at ``margin``."""
    return _write_scores(folder / "inference.csv", table, results, margin)


def write_evaluation(
    folder: Path, spec: ExperimentSpec, table: PairTable, results: PairResults, margin: float, facts: Mapping[str, Any]
) -> ClassifyReport:
    """``evaluate.csv``, ``metrics.json`` and ``report.html``."""
    from changenet.classify.report import write_report

    data = spec.dataset.classify
    report = classify_report(
        results.score,
        results.label,
        margin,
        groups=_known_groups(table, data.group_by),
        bootstrap=spec.evaluate.bootstrap,
        seed=max(0, spec.train.seed),
    )
    _write_scores(folder / "evaluate.csv", table, results, margin)
    metrics = {**report.plain(), "kpis": _plain(report.kpis("test")), "run": dict(facts)}
    if bool((results.label == 1).any()):
        metrics["suggested_eval_margin"] = suggest_margin(results.score, results.label)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    reader = PairReader(table, align=data.align == "shift", cache_mb=0)
    write_report(
        folder / "report.html",
        report=report,
        score=results.score,
        label=results.label,
        margin=margin,
        rows=[{"object_name": row.object_name, **row.fields} for row in table.rows],
        load_pair=lambda index: reader.composed(table.rows[index]),
        facts_of_run=facts,
    )
    return report


def summary_line(report: ClassifyReport) -> str:
    """TAO's line of the evaluation's result."""
    kpi = report.kpis("test")
    return (
        f"Tot Comp {report.total.num} Total Accuracy {kpi['test_acc']:.2f} False Negative {kpi['test_fnr']:.2f} "
        f"False Alarm {kpi['test_fpr']:.2f} Defect Correctly Captured {kpi['defect_acc']:.2f} "
        f"for Margin {report.margin:g}"
    )


MAX_GROUPS = 200
"""Above this many different names a column does not name component types, and groups are left out."""


def _known_groups(table: PairTable, column: str | None) -> Sequence[str] | None:
    names = group_names(table, column)
    return names if column or len(set(names)) <= MAX_GROUPS else None


def _write_scores(path: Path, table: PairTable, results: PairResults, margin: float) -> Path:
    added = [name for name in (SCORE_COLUMN, DECISION_COLUMN) if name not in table.columns]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*table.columns, *added])
        writer.writeheader()
        for index, score in zip(results.row.tolist(), results.score.numpy(), strict=True):
            decision = DECISIONS[int(score > np.float32(margin))]
            # repr of float32: the shortest text that reads back as the same number
            writer.writerow({**table.rows[index].fields, SCORE_COLUMN: str(score), DECISION_COLUMN: decision})
    return path


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in values.items()}
