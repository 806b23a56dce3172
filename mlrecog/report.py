"""``report.html`` of ``evaluate`` and ``inference``: pictures beside their nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from fiducial.data.images import open_image, to_rgb
from fiducial.prediction import Kpis
from fiducial.report import (
    Line,
    Page,
    Picture,
    Tile,
    columns,
    data_uri,
    facts,
    gallery,
    histogram,
    line_chart,
    note,
    number,
    scatter,
    table,
    tiles,
)
from mlrecog.gallery import UNKNOWN
from mlrecog.open_set import OpenSet

if TYPE_CHECKING:
    from mlrecog.results import Answers, Embedded

__all__ = ["write_answers_report", "write_retrieval_report"]

SHOWN = 40
"""Queries that are drawn."""
_NEIGHBOURS = 5
_SIDE = 140
_MAPPED = 1200
"""Embeddings on the map."""
_COLOURED = 6
"""Classes that have a colour of their own on the map."""


def write_retrieval_report(path: Path, result: Embedded, kpis: Kpis, judged: OpenSet, about: Mapping[str, Any]) -> Path:
    """The page of ``evaluate``: numbers, what went wrong first, classes, curves, a map."""
    reference, queries = result.sides
    page = Page("Retrieval", str(about.get("model", "")))
    numbers = tiles([Tile(name, number(v if isinstance(v, float) else None)) for name, v in kpis.items()])
    page.add("Summary", numbers, _curves(result))
    seen = cache(_uri)
    cards = [_query_card(result, place, seen) for place in _wrong_first(result)[:SHOWN]]
    page.add("Queries, wrong ones first", gallery(cards, wide=True), intro=_DISTANCE)
    mixed = result.retrieval.mixed_up(reference.labels)[:20]
    if mixed:
        rows: list[Sequence[Any]] = [[queries.names[own], reference.names[other], count] for own, other, count in mixed]
        page.add("Mixed up", table(["a picture of", "was taken for", "queries"], rows))
    page.add("Classes", _classes(result))
    page.add("Is it in the gallery at all?", *_open_set(judged), intro=_OPEN_SET)
    page.add("Map of the queries", _map(result), intro=_MAP)
    page.add("Run", facts(about))
    page.write(path)
    return path


def write_answers_report(path: Path, answers: Answers, about: Mapping[str, Any]) -> Path:
    """The page of ``inference``: each picture beside what it was taken for, the least certain first."""
    page = Page("Recognition", str(about.get("model", "")))
    shown = [Tile("pictures", number(len(answers.paths))), Tile("unknown", number(answers.num_unknown))]
    page.add("Summary", tiles(shown))
    order = torch.argsort(answers.found.distances_Qk[:, 0], descending=True).tolist()
    seen = cache(_uri)
    cards = [_answer_card(answers, place, seen) for place in order[:SHOWN]]
    page.add("Farthest from the gallery first", gallery(cards, wide=True), intro=_DISTANCE)
    page.add("Run", facts(about))
    page.write(path)
    return path


_DISTANCE = "Distances are squared, between embeddings of length 1: 0 is the same, 2 unrelated, 4 opposite."
_OPEN_SET = (
    "Each query is looked up twice: with its class in the gallery, and without it, as a product that nobody has added. "
    "A threshold on the distance of the nearest picture tells the two apart."
)
_MAP = "The two directions in which the queries differ most (principal components). Colours: the largest classes."


def _wrong_first(result: Embedded) -> list[int]:
    """Wrong queries, the surest first; then those that were nearly wrong."""
    found = result.retrieval
    right = found.each["precision_at_1"]
    gap = found.other_Q - found.own_Q
    return sorted(np.flatnonzero(found.counted).tolist(), key=lambda place: (right[place] != 0, gap[place]))


def _query_card(result: Embedded, place: int, seen: Callable[[Path], str]) -> Picture:
    reference, queries = result.sides
    found, sample = result.retrieval.found, queries.samples[place]
    images = {f"query: {queries.names[sample.label]}": sample.path}
    for rank in range(min(_NEIGHBOURS, found.places_Qk.shape[1])):
        neighbour = int(found.places_Qk[place, rank])
        if neighbour >= 0:
            other = reference.samples[neighbour]
            distance = float(found.distances_Qk[place, rank])
            images[f"{rank + 1}. {reference.names[other.label]} ({distance:.3f})"] = other.path
    right = bool(result.retrieval.each["precision_at_1"][place])
    nearest = int(found.places_Qk[place, 0])
    name, taken_for = queries.names[sample.label], reference.names[reference.samples[nearest].label]
    own, stranger = result.retrieval.own_Q[place], result.retrieval.other_Q[place]
    said = {"nearest of its class": number(_finite(own)), "nearest of another": number(_finite(stranger))}
    badge, tone = ("right", "good") if right else ("wrong", "bad")
    title = name if right else f"{name}, taken for {taken_for}"
    return _picture(title, _drawn(images, seen), {"file": _shown(sample.path), **said}, badge, tone)


def _answer_card(answers: Answers, place: int, seen: Callable[[Path], str]) -> Picture:
    found, decision = answers.found, answers.decisions[place]
    images = {"picture": answers.paths[place]}
    for rank, (label, source) in enumerate(zip(found.labels[place], found.sources[place], strict=True)):
        if rank < _NEIGHBOURS:
            images[f"{rank + 1}. {label} ({float(found.distances_Qk[place, rank]):.3f})"] = Path(source)
    tone = "bad" if decision == UNKNOWN else ""
    nearest, rival = float(found.distances_Qk[place, 0]), float(found.rival_Q[place])
    said = {"nearest": number(nearest), "nearest of another class": number(_finite(rival))}
    return _picture(_shown(answers.paths[place]), _drawn(images, seen), said, decision, tone)


def _picture(title: str, drawn: Mapping[str, str], said: Mapping[str, str], badge: str, tone: str) -> Picture:
    return Picture(
        title, dict(drawn), dict(said), badge=badge, tone=tone, problem="its picture cannot be read any more"
    )


def _drawn(images: Mapping[str, Path], seen: Callable[[Path], str]) -> dict[str, str]:
    return {caption: uri for caption, path in images.items() if (uri := seen(path))}


def _shown(path: Path) -> str:
    """A file with the folder it is in: pictures of several classes may have one name."""
    return "/".join(path.parts[-2:])


def _uri(path: Path) -> str:
    """Empty where the picture is not there: a kept gallery has the names of its pictures alone."""
    try:
        with open_image(path) as image:
            image.draft(None, (2 * _SIDE, 2 * _SIDE))  # JPEG files are decoded at a smaller scale
            return data_uri(np.asarray(to_rgb(image)), max_side=_SIDE)
    except Exception:  # whatever is wrong with it, the report is of other things
        return ""


def _classes(result: Embedded) -> str:
    reference, queries = result.sides
    found = result.retrieval
    top1, precision = found.by_class("precision_at_1"), found.by_class("mean_average_precision")
    asked, there = (
        queries.labels.bincount(minlength=len(queries.names)),
        reference.labels.bincount(minlength=len(reference.names)),
    )
    rows: list[Sequence[Any]] = [
        [name, int(asked[label]), int(there[label]), top1.get(label), precision.get(label)]
        for label, name in enumerate(reference.names)
    ]
    rows.sort(key=lambda row: (row[3] is None, row[3]))
    return table(["class", "queries", "references", "precision at 1", "average precision"], rows, sortable=True)


def _curves(result: Embedded) -> str:
    """Of the queries that count: how many have their class among the first k, and what share of the k is right."""
    found, counted = result.retrieval, torch.from_numpy(result.retrieval.counted)
    if not counted.any():
        return note("no class of the queries can be found in the gallery")
    there_Qk = found.found.places_Qk >= 0
    label_Qk = result.sides[0].labels[found.found.places_Qk.clamp(min=0)]
    right_Qk = (there_Qk & (label_Qk == result.sides[1].labels[:, None]))[counted].double()
    rank_k = torch.arange(1, right_Qk.shape[1] + 1)
    curves = {
        "Queries with their class among the nearest": right_Qk.cummax(1).values.mean(0),
        "Share of the nearest that are of the query's class": (right_Qk.cumsum(1) / rank_k).mean(0),
    }
    charts = [
        line_chart(
            title, [Line("all queries", rank_k.tolist(), share_k.tolist())], x_label="neighbours", y_range=(0, 1)
        )
        for title, share_k in curves.items()
    ]
    return columns(*charts)


def _open_set(judged: OpenSet) -> tuple[str, ...]:
    if judged.threshold is None:
        return (note("One class, or no reference of the queries' classes: nothing can be told."),)
    tile = tiles(
        [
            Tile("threshold", number(judged.threshold), "farther is unknown"),
            Tile("margin", number(judged.margin), "another class nearer than this is unknown"),
            Tile("AUROC", number(judged.auroc)),
            Tile("balanced accuracy", number(judged.balanced_accuracy)),
        ]
    )
    curve = line_chart(
        "Accepted, by the share of strangers accepted",
        [Line("of the gallery, and right", judged.false_accept_T.tolist(), judged.true_accept_T.tolist())],
        x_label="strangers accepted",
        y_label="accepted and right",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    distances = histogram(
        "Distance of the nearest picture",
        {"of the gallery": judged.known, "of no class of it": judged.strangers},
        x_label="distance",
        colours=("good", "bad"),
    )
    return tile, columns(curve, distances)


def _map(result: Embedded) -> str:
    """Queries, and beside them the gallery in the same plane, unless both are one."""
    gallery, queries = result.sides
    x_QD, labels_Q = _thinned(result.embeddings[1], queries.labels)
    if len(x_QD) < 3:
        return note("too few queries")
    middle_D = x_QD.mean(0)
    _, _, directions = torch.linalg.svd(x_QD - middle_D, full_matrices=False)
    shown = labels_Q.bincount().argsort(descending=True, stable=True)[: _COLOURED - 1].tolist()
    parts = [("Queries", x_QD, labels_Q)]
    if not result.same:
        parts.append(("Gallery", *_thinned(result.embeddings[0], gallery.labels)))
    charts = []
    for title, x_ND, labels_N in parts:
        plane = F.pad((x_ND - middle_D) @ directions.T, (0, 1))[:, :2].numpy()  # an embedding may be one number
        groups = {queries.names[label]: labels_N == label for label in shown}
        groups["others"] = ~torch.isin(labels_N, torch.tensor(shown))
        points = {name: (plane[mask.numpy(), 0], plane[mask.numpy(), 1]) for name, mask in groups.items() if mask.any()}
        charts.append(scatter(title, points, x_label="first component", y_label="second component"))
    return columns(*charts)


def _thinned(x_ND: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """So many as a map can show."""
    step = max(1, math.ceil(len(x_ND) / _MAPPED))
    return x_ND[::step].double(), labels_N[::step]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
