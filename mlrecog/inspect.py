"""A look at class folders before anything is built: quickly before every action, thoroughly in ``check``. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import yaml

from fiducial.data.checks import shortened, spread
from fiducial.data.looks import DECODED, GLANCE, Wrong, look_at
from fiducial.data.sources import local_path
from fiducial.errors import Problem, UserError
from fiducial.task import DataReport, SplitFacts
from mlrecog.batch_rules import check_batches
from mlrecog.folders import ClassFolders, Sample, alike
from mlrecog.splits import CLASS_MAP, QUERY, REFERENCE, TRAIN, read_inputs, read_reference, read_sides, read_train

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec

__all__ = ["check_data"]

LOOKED_AT = 500
"""Pictures of a part that every action takes a glance at; ``check`` decodes all."""
_NAMED = 5


def check_data(spec: ExperimentSpec, splits: Sequence[str], *, thorough: bool) -> DataReport:
    """Look at some parts; problems of every one are collected."""
    report, known = DataReport(), set[str]()
    for name in splits:
        if name == "val" and "train" in splits and not any(spec.dataset.val_dataset.__dict__.values()):
            report.problems.append(Problem(REFERENCE, "not set", "training runs without validation", "warning"))
            continue
        try:
            parts = _parts(spec, name)
        except UserError as error:
            report.problems.extend(error.problems)
            continue
        for part, (key, folders) in parts.items():
            known.update(folders.classes)
            report.facts[part] = _facts(folders)
            report.problems.extend(_check_folders(key, folders, thorough=thorough))
        if name == "train":
            report.problems.extend(_check_batches(spec, parts["train"][1]))
        if name == "val" and "queries" in parts:
            report.problems.extend(_check_sides(parts["gallery"][1], parts["queries"][1]))
        if name == "infer":
            inputs = read_inputs(spec)
            report.facts["inputs"] = SplitFacts(len(inputs), "pictures")
            report.problems.extend(_check_pictures(inputs, thorough=thorough))
    if spec.dataset.class_map and known:
        report.problems.extend(_check_map(spec.dataset.class_map, known))
    return report


def _parts(spec: ExperimentSpec, name: str) -> dict[str, tuple[str, ClassFolders]]:
    """Of a split: what it is called, the spec key, its folders. Raises: UserError."""
    if name == "train":
        return {"train": (TRAIN, read_train(spec))}
    if name == "infer":
        read_inputs(spec)
        return {} if spec.inference.gallery else {"gallery": (REFERENCE, read_reference(spec))}
    sides = read_sides(spec)
    return {"gallery": (REFERENCE, sides.gallery), "queries": (QUERY, sides.queries)}


def _facts(folders: ClassFolders) -> SplitFacts:
    labels = {folders.names[label]: count for label, count in folders.counts.most_common()}
    details = {"folder": str(folders.root), "classes": len(folders.classes)}
    return SplitFacts(len(folders.samples), "pictures", labels=labels, details=details)


def _check_folders(key: str, folders: ClassFolders, *, thorough: bool) -> Iterator[Problem]:
    if folders.empty and key != QUERY:
        found = f"{len(folders.empty)} class folders without a picture: {_listed(folders.empty)}"
        yield Problem(key, found, "they keep their numbers; add pictures, or remove them", "warning")
    for one, other in alike(folders.classes)[:_NAMED] if key != QUERY else ():
        found = f"the folders {one!r} and {other!r} differ in capitals or blanks alone"
        yield Problem(key, found, "they are two classes; rename one if they are the same", "warning")
    yield from _check_pictures(folders.samples, thorough=thorough)


def _check_batches(spec: ExperimentSpec, folders: ClassFolders) -> Iterator[Problem]:
    per_class = spec.dataset.num_instance
    labels = [sample.label for sample in folders.samples]
    if wrong := check_batches(labels, batch_size=spec.train.batch_size, per_class=per_class):
        yield Problem(*wrong)
    few = [folders.names[label] for label, count in folders.counts.items() if count < per_class]
    if few:
        found = f"{len(few)} classes have fewer than dataset.num_instance={per_class} pictures: {_listed(few)}"
        yield Problem(TRAIN, found, "some come more than once in a batch, changed anew", "warning")


def _check_sides(gallery: ClassFolders, queries: ClassFolders) -> Iterator[Problem]:
    lone = [queries.names[label] for label in sorted(queries.counts) if not gallery.counts[label]]
    if lone:
        found = f"{len(lone)} classes of the queries have no picture in the gallery: {_listed(lone)}"
        yield Problem(QUERY, found, "their queries do not count; add references", "warning")


def _check_pictures(samples: Sequence[Sample], *, thorough: bool) -> Iterator[Problem]:
    paths = [sample.path for sample in (samples if thorough else spread(samples, LOOKED_AT))]
    found = look_at(DECODED, paths) if thorough else look_at(GLANCE, paths)
    yield from shortened(problem for each in found if isinstance(each, Wrong) for problem in each.problems)


def _check_map(value: str, known: set[str]) -> Iterator[Problem]:
    tree = yaml.safe_load(local_path(value, key=CLASS_MAP).read_text(encoding="utf-8-sig"))
    unknown = [str(name) for name in tree if str(name) not in known] if isinstance(tree, dict) else []
    if unknown:
        found = f"names {len(unknown)} classes that are in none of these data sets: {_listed(unknown)}"
        yield Problem(CLASS_MAP, found, "its names are those of the class folders", "warning")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
