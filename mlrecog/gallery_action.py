"""``gallery build|add|remove|search|stats``: reference embeddings that are kept, without training anew."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.actions.preflight import check_rules, warn
from fiducial.actions.result import Result
from fiducial.checkpoints.atomic import save_atomically
from fiducial.errors import SHOWN, Problem, SpecError, one_line
from fiducial.run.console import LOGGER
from fiducial.run.ranks import global_rank
from mlrecog.folders import alike
from mlrecog.gallery import UNKNOWN, AnyGallery, Found, GalleryCard, gallery_class, open_gallery
from mlrecog.gallery_embed import EmbeddingModel, Picture, open_embedder, read_labelled, read_queries
from mlrecog.gallery_stats import GalleryStats, look_at
from mlrecog.gallery_table import guarded
from mlrecog.lance import LanceGallery

if TYPE_CHECKING:
    from fiducial.run.run import Run
    from fiducial.task import Task
    from mlrecog.config import GallerySection

__all__ = ["run_gallery"]

_NEEDS = {"build": ("source",), "add": (), "search": ("query",), "remove": (), "stats": ()}
"""Keys that a verb cannot do without, beside ``path``."""


def run_gallery(task: Task[Any], run: Run) -> Result:
    """Do ``run.verb``, in the first process of several. Raises: UserError."""
    problems = [*_check(run.section, run.verb), *check_rules(task, run.spec, run.action)]
    warn([problem for problem in problems if problem.level == "warning"])
    if errors := [problem for problem in problems if problem.level == "error"]:
        raise SpecError.of(errors)
    if global_rank() != 0:
        return Result(run.action.name, run.folder)
    verbs: dict[str, Callable[[Task[Any], Run], Result]] = {
        "build": _build,
        "add": _add,
        "remove": _remove,
        "search": _search,
        "stats": _stats,
    }
    return verbs[run.verb](task, run)


def _check(section: GallerySection, verb: str) -> Iterator[Problem]:
    for name in ("path", *_NEEDS[verb]):
        if not getattr(section, name):
            yield Problem(f"gallery.{name}", "not set", f"gallery {verb} needs it")
    if verb == "add" and not section.source and section.threshold is None and section.margin is None:
        yield Problem("gallery.source", "not set", "name the pictures to add, or a new threshold or margin")
    if verb == "remove" and not section.label and not section.sources:
        yield Problem("gallery.label", "not set, nor gallery.sources", "name a class or pictures to remove")


# --- verbs ------------------------------------------------------------------------------------------------------------


def _build(task: Task[Any], run: Run) -> Result:
    section = run.section
    kind = gallery_class(section.path)
    kind.check_free(section.path, overwrite=section.overwrite)
    pictures = read_labelled(run.spec)
    _tell_alike([picture.entry.label for picture in pictures])
    model = open_embedder(task, run)
    parts = _parts(model, run, pictures)
    first = next(parts)
    card = GalleryCard(model.facts, first.embeddings_ND.shape[1], section.threshold, section.margin)
    gallery = kind.build(section.path, card, chain([first], parts), overwrite=section.overwrite)
    _index(gallery, section)
    return _done(run, gallery, f"{gallery.path}: built with {model.facts}")


def _add(task: Task[Any], run: Run) -> Result:
    section = run.section
    gallery = _open(section)
    if section.source:
        pictures = read_labelled(run.spec)
        new = _not_known(gallery, pictures)
        if new:
            _tell_alike([*gallery.counts, *(picture.entry.label for picture in new)])
            model = _same_model(task, run, gallery)
            added = gallery.add(_parts(model, run, new))
            run.note(f"{added.new} pictures added, {added.replaced} replaced, whose files have changed")
        _index(gallery, section)
    if section.threshold is not None or section.margin is not None:
        gallery.decide_by(section.threshold, section.margin)
    return _done(run, gallery, gallery.path)


def _remove(task: Task[Any], run: Run) -> Result:
    section = run.section
    gallery = _open(section)
    gone = gallery.remove(labels=[section.label] if section.label else [], sources=section.sources)
    return _done(run, gallery, f"{gallery.path}: {gone} pictures removed")


def _search(task: Task[Any], run: Run) -> Result:
    section = run.section
    gallery, queries = _open(section), read_queries(run.spec)
    model = _same_model(task, run, gallery)
    if section.topk > len(gallery) > 0:
        LOGGER.warning("gallery.topk: %d, and %d pictures in the gallery: all are listed", section.topk, len(gallery))
    embeddings_QD = model.embed(queries, batch_size=section.batch_size, workers=run.spec.dataset.workers)
    found = gallery.search(embeddings_QD, section.topk)
    card = gallery.card.deciding(section.threshold, section.margin)
    decisions = found.decisions(card.threshold, card.margin)
    path = run.folder / "search.csv"
    data = _search_csv(queries, found, decisions)
    save_atomically(path, lambda file: file.write(data))
    for line in _nearest_lines(queries, found, decisions):
        LOGGER.info("%s", line)
    unknown = decisions.count(UNKNOWN)
    run.note(f"{len(queries)} pictures looked up, {unknown} of no class of the gallery: {path}")
    return Result(run.action.name, run.folder, {"pictures": float(len(queries)), "unknown": float(unknown)}, (path,))


def _stats(task: Task[Any], run: Run) -> Result:
    stats = look_at(_open(run.section), run.section.duplicate_distance)
    path = run.folder / "stats.json"
    text = json.dumps(stats.plain(), indent=1, ensure_ascii=False).encode()
    save_atomically(path, lambda file: file.write(text))
    for line in _stats_lines(stats):
        LOGGER.info("%s", line)
    return _done(run, stats.gallery, stats.gallery.path, path)


# --- steps ------------------------------------------------------------------------------------------------------------


def _open(section: GallerySection) -> AnyGallery:
    gallery = open_gallery(section.path or "")
    if isinstance(gallery, LanceGallery):
        gallery.exact, gallery.probes, gallery.refine = section.index == "exact", section.probes, section.refine
    return gallery


def _same_model(task: Task[Any], run: Run, gallery: AnyGallery) -> EmbeddingModel:
    model = open_embedder(task, run)
    gallery.card.check(model.facts, gallery.path)
    return model


def _parts(model: EmbeddingModel, run: Run, pictures: Sequence[Picture]) -> Iterator[Any]:
    return model.parts(pictures, batch_size=run.section.batch_size, workers=run.spec.dataset.workers)


def _not_known(gallery: AnyGallery, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures that are not in the gallery as they are; the others are told."""
    known = gallery.known(picture.entry.source for picture in pictures)
    there = [(known.get(picture.entry.source), picture) for picture in pictures]
    same = [(old, picture.entry) for old, picture in there if old and old.sha256 == picture.entry.sha256]
    if same:
        LOGGER.info("%d of %d pictures are in the gallery already: left as they are", len(same), len(pictures))
    for old, given in [pair for pair in same if pair[0].label != pair[1].label][:SHOWN]:
        LOGGER.warning("%s stays %r: to make it %r, remove it first", given.source, old.label, given.label)
    return [picture for old, picture in there if not old or old.sha256 != picture.entry.sha256]


def _tell_alike(labels: Sequence[str]) -> None:
    for one, other in alike(list(dict.fromkeys(labels)))[:SHOWN]:
        found = f"the labels {one!r} and {other!r} differ in capitals or blanks alone"
        LOGGER.warning("%s", Problem("gallery.source", found, "they are two classes; rename one if they are the same"))


def _index(gallery: AnyGallery, section: GallerySection) -> None:
    """Make the index that the spec asks for, and tell how good it is."""
    if not isinstance(gallery, LanceGallery):
        if section.index == "ivf_pq":
            LOGGER.warning(
                "gallery.index: a gallery in a folder is searched exactly: name a folder *.lance for an index"
            )
        return
    gallery.probes, gallery.refine = section.probes, section.refine
    if section.index == "ivf_pq" and not gallery.is_indexed:
        gallery.make_index()
    if (recall := gallery.recall()) is not None:
        LOGGER.info("%s", _recall_line(recall))


def _done(run: Run, gallery: AnyGallery, what: str, *files: Path) -> Result:
    counts = gallery.counts
    pictures = sum(counts.values())
    run.note(f"{what}: {pictures} pictures of {len(counts)} classes")
    return Result(run.action.name, run.folder, {"pictures": float(pictures), "classes": float(len(counts))}, files)


# --- words ------------------------------------------------------------------------------------------------------------


def _search_csv(queries: Sequence[Picture], found: Found, decisions: Sequence[str]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(("query", "rank", "label", "distance", "source", "decision"))
    for i, (query, decision) in enumerate(zip(queries, decisions, strict=True)):
        rows = zip(found.labels[i], found.distances_Qk[i].tolist(), found.sources[i], strict=True)
        for rank, (label, distance, source) in enumerate(rows, 1):
            cells = (guarded(text) for text in (source, decision))
            writer.writerow((guarded(query.entry.source), rank, guarded(label), f"{distance:.6g}", *cells))
    return file.getvalue().encode("utf-8-sig")


def _nearest_lines(queries: Sequence[Picture], found: Found, decisions: Sequence[str]) -> Iterator[str]:
    for i, query in enumerate(queries[:SHOWN]):
        rows = zip(found.labels[i], found.distances_Qk[i].tolist(), strict=True)
        near = ", ".join(f"{one_line(label, 60)} {distance:.3f}" for label, distance in rows)
        yield f"{'/'.join(query.path.parts[-2:])}: {one_line(decisions[i], 60)} (nearest: {near})"
    if len(queries) > SHOWN:
        counts = ", ".join(f"{one_line(name, 60)} {count}" for name, count in Counter(decisions).most_common(SHOWN))
        yield f"… and {len(queries) - SHOWN} more; in all: {counts}"


def _stats_lines(stats: GalleryStats) -> Iterator[str]:
    card, total = stats.gallery.card, sum(stats.counts.values())
    height, width = card.model.image_size
    yield f"model: {card.model}, {card.dim} numbers, pictures of {width} x {height}"
    yield f"threshold {card.threshold}, margin {card.margin}"
    largest = sorted(stats.counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{one_line(label, 60)} {count}" for label, count in largest[:SHOWN])
    yield f"classes: {shown}{f', and {len(largest) - SHOWN} more' if len(largest) > SHOWN else ''}"
    for one, other in stats.alike[:SHOWN]:
        yield f"the labels {one!r} and {other!r} differ in capitals or blanks alone"
    sample = f" of {stats.looked_at} of {total} pictures that were looked at" if stats.looked_at < total else ""
    yield f"near-duplicates{sample}: {len(stats.near_duplicates)}"
    for pair in stats.near_duplicates[:SHOWN]:
        labels = pair.label if pair.label == pair.other_label else f"{pair.label} and {pair.other_label}"
        yield f"  {pair.distance:.4f}  {pair.source} and {pair.other_source} ({one_line(labels, 100)})"
    yield f"outliers{sample}: {len(stats.outliers)}"
    for odd in stats.outliers[:SHOWN]:
        yield f"  {odd.source} ({one_line(odd.label, 60)}) is nearest to {odd.other_label!r}: {odd.distance:.4f}"
    if stats.recall is not None:
        yield _recall_line(stats.recall)


def _recall_line(recall: float) -> str:
    return f"recall of the approximate index against exact search, 10 neighbours, a sample: {recall:.3f}"
