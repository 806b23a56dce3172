"""From scores to decisions, metrics and files. The same code serves validation, ``evaluate`` and ``inference``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from changenet.classify.data import PairReader
from changenet.classify.metrics import ClassifyReport, checked_margin, classify_report, suggest_margin
from changenet.classify.rows import PairTable
from fiducial.errors import MetricError, Problem, UserError

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

SCORE_COLUMN = "siamese_score"
DECISION_COLUMN = "decision"
DECISIONS = ("PASS", "FAIL")
_UNSOUND = "a score that is not a number is never PASS: check the checkpoint, its precision, and the normalisation"


@dataclass(frozen=True)
class PairResults:
    """Scores in dataset order, ``(n,)`` on the CPU: ``row`` int64, ``label`` int64 (-1 unknown), ``score`` float32."""

    row: Tensor
    label: Tensor
    score: Tensor


def unsound_rows(results: PairResults) -> list[int]:
    """The rows whose score is NaN or infinite."""
    return [int(row) for row in results.row[~results.score.isfinite()]]


def unsound(rows: Sequence[int], where: Callable[[int], str]) -> UserError:
    """The error that names the rows without a sound score; ``where`` says where a row is."""
    return MetricError.of(Problem(where(row), "the score is NaN or infinite", _UNSOUND) for row in rows)


def decide(score: NDArray[np.float32], margin: float) -> list[str]:
    """``PASS`` or ``FAIL`` for each score, compared as float32, as PyTorch does.

    Raises: MetricError for a score or a margin that is NaN or infinite: every comparison with NaN would say PASS.
    """
    limit = np.float32(checked_margin(margin))
    if bad := np.flatnonzero(~np.isfinite(score)).tolist():
        raise unsound(bad, "score {}".format)
    return [DECISIONS[int(fails)] for fails in score > limit]


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
    scores = results.score.numpy()
    decisions = decide(scores, margin)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*table.columns, *added])
        writer.writeheader()
        for index, score, decision in zip(results.row.tolist(), scores, decisions, strict=True):
            # repr of float32: the shortest text that reads back as the same number
            writer.writerow({**table.rows[index].fields, SCORE_COLUMN: str(score), DECISION_COLUMN: decision})
    return path


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in values.items()}
