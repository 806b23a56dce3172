"""The files that ``evaluate`` and ``inference`` write."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.checkpoints.atomic import save_atomically
from fiducial.prediction import Kpis
from fiducial.run.console import LOGGER
from mlrecog.gallery_table import guarded
from mlrecog.metrics import CUTS
from mlrecog.open_set import OpenSet, open_set
from mlrecog.report import write_answers_report, write_retrieval_report

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec
    from mlrecog.results import Answers, Embedded

__all__ = ["write_evaluation", "write_inference"]

_PER_CLASS = (
    "r_precision",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
    *(f"recall_at_{number}" for number in CUTS),
)
_MIXED = 20
"""Pairs of classes that are listed as mixed up."""


def write_evaluation(
    folder: Path, spec: ExperimentSpec, result: Embedded, kpis: Kpis, facts: Mapping[str, Any]
) -> tuple[Path, ...]:
    """``metrics.json``, ``accuracy_per_class.csv``, ``queries.csv`` and ``report.html``."""
    gallery, queries = result.sides
    found = result.retrieval
    judged = open_set(found.own_Q, found.other_Q)
    mixed = [
        {"class": queries.names[own], "found": gallery.names[other], "queries": count}
        for own, other, count in found.mixed_up(gallery.labels)[:_MIXED]
    ]
    tree = {
        "kpis": kpis,
        "pictures": {side.name: len(side.samples) for side in result.sides},
        "lone_queries": int((~found.counted).sum()),
        "open_set": judged.plain(),
        "mixed_up": mixed,
        "facts": dict(facts),
    }
    metrics = _write_text(folder / "metrics.json", json.dumps(_finite(tree), indent=2))
    written = [metrics, _write_queries(folder / "queries.csv", result)]
    if spec.evaluate.report_accuracy_per_class:
        written.append(_write_classes(folder / "accuracy_per_class.csv", result))
    _tell(judged)
    written.append(write_retrieval_report(folder / "report.html", result, kpis, judged, facts))
    LOGGER.info("report: %s", written[-1])
    return tuple(written)


def write_inference(folder: Path, spec: ExperimentSpec, answers: Answers, facts: Mapping[str, Any]) -> tuple[Path, ...]:
    """TAO's ``result.csv``, ``neighbours.csv`` with a heading, and ``report.html``."""
    found = answers.found
    # TAO-compat: no heading, and lists as Python writes them
    rows = [
        [answers.called(path), str(list(labels)), str(distances)]
        for path, labels, distances in zip(answers.paths, found.labels, found.distances_Qk.tolist(), strict=True)
    ]
    result = _write_csv(folder / "result.csv", rows)
    LOGGER.info("result saved at %s", result)
    listed = _write_csv(folder / "neighbours.csv", [_HEADING, *_neighbours(answers)], guard=True)
    report = write_answers_report(folder / "report.html", answers, facts)
    return result, listed, report


_HEADING = ("picture", "decision", "rank", "class", "distance", "similarity", "reference")


def _neighbours(answers: Answers) -> Iterable[list[Any]]:
    found = answers.found
    for number, path in enumerate(answers.paths):
        distances = found.distances_Qk[number].tolist()
        for rank, (label, source, distance) in enumerate(
            zip(found.labels[number], found.sources[number], distances, strict=True), 1
        ):
            similarity = 1 - distance / 2  # cosine, of unit vectors
            numbers = f"{distance:.6f}", f"{similarity:.6f}"
            yield [answers.called(path), answers.decisions[number], rank, label, *numbers, answers.called(source)]


def _write_queries(path: Path, result: Embedded) -> Path:
    """Each query with its nearest picture, those that are wrong first, the surest of them first."""
    gallery, queries = result.sides
    found = result.retrieval
    nearest, distances = found.found.places_Qk[:, 0].tolist(), found.found.distances_Qk[:, 0].tolist()
    right = found.each["precision_at_1"]
    order = sorted(range(len(nearest)), key=lambda number: (right[number] != 0, distances[number]))
    rows: list[Sequence[str]] = [
        ("picture", "class", "found", "right", "distance", "own_class", "other_class", "reference")
    ]
    for number in order:
        sample, place = queries.samples[number], nearest[number]
        reference = gallery.samples[place] if place >= 0 else None
        rows.append(
            (
                queries.called(sample.path),
                queries.names[sample.label],
                gallery.names[reference.label] if reference else "",
                "" if math.isnan(right[number]) else str(int(right[number])),
                *(f"{value:.6f}" for value in (distances[number], found.own_Q[number], found.other_Q[number])),
                gallery.called(reference.path) if reference else "",
            )
        )
    return _write_csv(path, rows, guard=True)


def _write_classes(path: Path, result: Embedded) -> Path:
    """TAO's index and column first; a class without queries has blanks."""
    gallery, queries = result.sides
    found = result.retrieval
    top1 = found.by_class("precision_at_1")
    others = {name: found.by_class(name) for name in _PER_CLASS}
    in_query, in_gallery = (side.labels.bincount(minlength=len(side.names)).tolist() for side in (queries, gallery))
    rows: list[Sequence[Any]] = [("", "top1_acc", "queries", "references", *_PER_CLASS)]
    for label, name in enumerate(gallery.names):
        values = [top1.get(label), *(others[metric].get(label) for metric in _PER_CLASS)]
        shown = ["" if value is None else f"{value:.6f}" for value in values]
        rows.append((name, shown[0], in_query[label], in_gallery[label], *shown[1:]))
    return _write_csv(path, rows, guard=True)


def _tell(judged: OpenSet) -> None:
    if judged.threshold is not None:
        LOGGER.info(
            "a picture of no class of the gallery: farther than %.3f, or within %.3f of another class "
            "(gallery.threshold, gallery.margin; balanced accuracy %.3f)",
            judged.threshold,
            judged.margin or 0.0,
            judged.balanced_accuracy,
        )


def _write_csv(path: Path, rows: Iterable[Sequence[Any]], *, guard: bool = False) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([guarded(c) if guard and isinstance(c, str) else c for c in row] for row in rows)
    return _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> Path:
    save_atomically(path, lambda file: file.write(text.encode("utf-8", errors="surrogateescape")))
    return path


def _finite(tree: Any) -> Any:
    """Without NaN and infinities, which JSON does not have."""
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
