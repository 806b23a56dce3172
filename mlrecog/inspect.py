"""A look at class folders before anything is built: quickly before every action, thoroughly in ``check``. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fiducial.data.checks import shortened, spread
from fiducial.data.looks import DECODED, GLANCE, Wrong, look_at
from fiducial.errors import Problem, UserError
from fiducial.task import DataReport, SplitFacts
from mlrecog.batch_rules import check_batches, check_shape
from mlrecog.folders import ClassFolders, Sample, alike, read_class_maps
from mlrecog.splits import (
    CLASS_MAP,
    QUERY,
    REFERENCE,
    TRAIN,
    Sides,
    read_inputs,
    read_queries,
    read_reference,
    read_train,
)

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec

__all__ = ["check_data"]

LOOKED_AT = 500
"""Pictures of a part that every action takes a glance at; ``check`` decodes all."""
_NAMED = 5


def check_data(spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
    """Look at some parts; problems of every one are collected."""
    report = DataReport()
    found: dict[str, ClassFolders] = {}

    def have(key: str, part: str, read: Callable[[], ClassFolders]) -> None:
        try:
            found[part] = folders = read()
        except UserError as error:
            report.problems.extend(error.problems)
            return
        report.problems.extend(_check_folders(key, folders, thorough=thorough))

    if "train" in splits and spec.dataset.train_dataset:  # the rules of the spec say that it is not set
        have(TRAIN, "train", lambda: read_train(spec))
    if "train" in found:
        report.problems.extend(_check_batches(spec, found["train"]))
    if "val" in splits and "train" in splits and not any(spec.dataset.val_dataset.__dict__.values()):
        report.problems.append(Problem(REFERENCE, "not set", "training runs without validation", "warning"))
    elif "val" in splits:
        have(REFERENCE, "gallery", lambda: read_reference(spec))
        have(QUERY, "queries", lambda: read_queries(spec, found.get("gallery")))
        if {"gallery", "queries"} <= found.keys():
            report.problems.extend(_check_sides(Sides(found["gallery"], found["queries"])))
    if "infer" in splits:
        if not spec.inference.gallery:
            have(REFERENCE, "gallery", lambda: read_reference(spec))
        _check_inputs(spec, report, thorough=thorough)
    names = _check_map(spec, [found[part] for part in ("train", "gallery") if part in found], report)
    report.facts = {part: _facts(folders.shown_as(names)) for part, folders in found.items()} | report.facts
    return report


def _check_inputs(spec: ExperimentSpec, report: DataReport, *, thorough: bool) -> None:
    """What inference looks up, and the kept gallery that it searches."""
    try:
        inputs = read_inputs(spec).samples
        report.facts["inputs"] = SplitFacts(len(inputs), "pictures")
        report.problems.extend(_check_pictures(inputs, thorough=thorough))
    except UserError as error:
        report.problems.extend(error.problems)
    if spec.inference.gallery:
        from mlrecog.gallery import open_gallery  # with torch

        try:
            kept = open_gallery(spec.inference.gallery)
            report.facts["gallery"] = SplitFacts(len(kept), "pictures", labels=kept.counts)
            if not len(kept):
                report.problems.append(Problem("inference.gallery", f"{kept.path} is empty", "add pictures to it"))
        except UserError as error:
            report.problems.extend(error.problems)


def _facts(folders: ClassFolders) -> SplitFacts:
    labels = {folders.names[label]: count for label, count in folders.counts.most_common()}
    details = {"folder": str(folders.root), "classes": len(folders.classes)}
    return SplitFacts(len(folders.samples), "pictures", labels=labels, details=details)


def _check_folders(key: str, folders: ClassFolders, *, thorough: bool) -> Iterator[Problem]:
    if folders.empty and key != QUERY:
        found = f"class folders without a picture: {_listed(folders.empty)}"
        yield Problem(key, found, "they keep their numbers; add pictures, or remove them", "warning")
    for one, other in alike(folders.classes)[:_NAMED] if key != QUERY else ():
        found = f"the folders {one!r} and {other!r} differ in capitals or blanks alone"
        yield Problem(key, found, "they are two classes; rename one if they are the same", "warning")
    yield from _check_pictures(folders.samples, thorough=thorough)


def _check_batches(spec: ExperimentSpec, folders: ClassFolders) -> Iterator[Problem]:
    per_class = spec.dataset.num_instance
    labels = [sample.label for sample in folders.samples]
    shape = check_shape(spec.train.batch_size, per_class)  # told by the rules of the spec
    if not shape and (wrong := check_batches(labels, batch_size=spec.train.batch_size, per_class=per_class)):
        yield Problem(*wrong)
    few = [folders.classes[label] for label, count in folders.counts.items() if count < per_class]
    if few:
        found = f"classes with fewer than dataset.num_instance={per_class} pictures: {_listed(few)}"
        yield Problem(TRAIN, found, "some come more than once in a batch, changed anew", "warning")


def _check_sides(sides: Sides) -> Iterator[Problem]:
    queries = sides.queries
    if sides.same:
        lone = [queries.classes[label] for label, count in queries.counts.items() if count == 1]
        found, fix = "classes of one picture, which does not find itself", "their queries do not count; add pictures"
    else:
        lone = [queries.classes[label] for label in sorted(queries.counts) if not sides.gallery.counts[label]]
        found, fix = "classes without a picture in the gallery", "their queries do not count; add references"
    if lone:
        yield Problem(QUERY, f"{len(lone)} of {len(queries.counts)} {found}: {_listed(lone)}", fix, "warning")


def _check_pictures(samples: Sequence[Sample], *, thorough: bool) -> Iterator[Problem]:
    paths = [sample.path for sample in (samples if thorough else spread(samples, LOOKED_AT))]
    found = look_at(DECODED, paths) if thorough else look_at(GLANCE, paths)
    yield from shortened(problem for each in found if isinstance(each, Wrong) for problem in each.problems)


def _check_map(spec: ExperimentSpec, parts: Sequence[ClassFolders], report: DataReport) -> dict[str, str]:
    """The names that the class map gives, none where it is wrong; what is wrong goes into the report."""
    value = spec.dataset.class_map
    if not value:
        return {}
    try:
        names, unknown = read_class_maps(value, key=CLASS_MAP, parts=[folders.classes for folders in parts])
    except UserError as error:
        report.problems.extend(error.problems)
        return {}
    if unknown and parts:
        found = f"names that are no class folder of these data sets: {_listed(unknown)}"
        report.problems.append(Problem(CLASS_MAP, found, "its names are those of the class folders", "warning"))
    return names


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
