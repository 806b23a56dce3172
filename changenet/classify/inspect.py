"""A look at a dataset before it is trained on: quickly before every action, thoroughly in ``check``. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from changenet.classify.rows import (
    SPLITS,
    PairRow,
    PairTable,
    check_labels,
    named_files,
    read_pairs,
)
from fiducial.data.checks import (
    Entry,
    check_count,
    check_overlap,
    check_whole_files,
    content_of,
    how_to_find,
    in_threads,
    spread,
)
from fiducial.data.images import read_rgb
from fiducial.errors import DatasetError, Problem, UserError
from fiducial.task import DataReport, SplitFacts

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

MAX_SHIFT = 3.0
"""Pixels that a test image may lie beside its golden before ``check`` warns."""
LOOKED_AT = 1000
"""Images of a split that every action takes a glance at, spread evenly; ``check`` decodes all."""
REGISTERED_ROWS = 64
"""Rows whose registration ``check`` measures, spread evenly over a split."""
_Named = tuple[PairRow, Path]
_Size = tuple[int, int]


def check_data(spec: ExperimentSpec, splits: Sequence[str], thorough: bool) -> DataReport:
    """Look at some splits. ``thorough`` decodes every image and compares splits and pairs.

    A missing validation set is only a warning in training. Problems of every split are collected before any is raised.
    """
    report = DataReport()
    dataset = spec.dataset.classify
    tables: dict[str, PairTable] = {}
    for split in splits:
        files = getattr(dataset, SPLITS[split])
        if split == "val" and not (files.csv_path or files.images_dir):
            where = "dataset.classify.validation_dataset"
            report.problems.append(Problem(where, "not set", "training runs without validation", "warning"))
            continue
        try:
            tables[split] = read_pairs(dataset, split)
        except UserError as error:
            report.problems.extend(error.problems)
    for split, table in tables.items():
        report.facts[split] = _facts(table)
        report.problems.extend(check_labels(table) if split != "infer" else ())
        report.problems.extend(_check_classes(table, split, spec))
        missing, present = _look_for_files(table)
        report.problems.extend(missing)
        if thorough:
            sizes = dict(zip((path for _, path in present), in_threads(_size_of, present), strict=True))
            found = Counter(f"{size[0]}x{size[1]}" for size in sizes.values() if isinstance(size, tuple))
            report.facts[split] = _facts(table, dict(found.most_common()))
            report.problems.extend(_check_images(table, present, sizes))
            report.problems.extend(_check_registration(table))
        else:
            glanced_at = spread(present, LOOKED_AT)
            report.problems.extend(check_whole_files((table.where(row), path) for row, path in glanced_at))
    if thorough:
        for split in ("val", "test"):
            other = tables.get(split) or _other_split(dataset, split)
            if "train" in tables and other:
                both = _by_content(tables["train"]), _by_content(other)
                report.problems.extend(check_overlap(*both, "the same image as {where}"))
    return report


def _other_split(dataset: Any, split: str) -> PairTable | None:
    files = getattr(dataset, SPLITS[split])
    if not (files.csv_path and files.images_dir):
        return None
    try:
        return read_pairs(dataset, split)
    except UserError:
        return None  # not what this action is about; its own check names it


def _facts(table: PairTable, sizes: Mapping[str, int] | None = None) -> SplitFacts:
    labels = Counter(row.fields.get("label", "(none)") for row in table.rows)
    details: dict[str, Any] = {"csv": str(table.csv_path), "images": str(table.images_dir)}
    details["goldens"] = len({table.golden_key(row) for row in table.rows})
    if sizes is not None:
        details["sizes"] = dict(sizes)
    return SplitFacts(len(table.rows), "rows", labels=dict(labels.most_common()), details=details)


def _check_classes(table: PairTable, split: str, spec: ExperimentSpec) -> Iterator[Problem]:
    where = str(table.csv_path)
    if split == "infer":
        return
    defects = sum(row.label == 1 for row in table.rows)
    good = len(table.rows) - defects
    if split == "train":
        yield from check_count(
            where,
            len(table.rows),
            "rows",
            batch_size=spec.dataset.classify.batch_size,
            num_devices=spec.train.num_devices,
            batch_key="dataset.classify.batch_size",
            devices_key="train.num_gpus",
        )
        if not defects:
            found = "no defects: fpratio_sampling has nothing to draw"
            yield Problem(where, found, "add rows whose label is not PASS")
        elif not good:
            yield Problem(where, "no PASS rows", "add good pairs, labelled PASS", "warning")
    elif not defects or not good:
        found = "no defects" if not defects else "no PASS rows"
        yield Problem(where, found, "some metrics need both classes and will be empty", "warning")


def _look_for_files(table: PairTable) -> tuple[list[Problem], list[_Named]]:
    """Problems of files and folders that are not there, by CSV line; and the files that are."""
    ext = table.layout.image_ext
    problems: list[Problem] = []
    if table.layout.num_golden > 1:
        for row in _first_per(table.rows, lambda row: row.golden_path):
            if not table.golden_names(row):
                found = f"no *{ext} image in {table.images_dir / row.golden_path}"
                fix = "with num_golden above 1, golden_path is the folder of the goldens"
                problems.append(Problem(table.where(row), found, fix))
    named = list(named_files(table, table.rows))
    exists = in_threads(lambda item: item[1].is_file(), named)
    for (row, path), there in zip(named, exists, strict=True):
        if not there:
            problems.append(
                Problem(table.where(row), f"Image file wasn't found at {path}", _how_to_find(row, path, ext))
            )
    return problems, [item for item, there in zip(named, exists, strict=True) if there]


def _check_images(table: PairTable, present: list[_Named], sizes: dict[Path, _Size | Problem]) -> Iterator[Problem]:
    """Images that cannot be decoded, and lights of one image that differ in size."""
    for row, path in present:
        size = sizes[path]
        if isinstance(size, Problem):
            yield Problem(table.where(row), f"{size.where}: {size.found}", size.fix)
    for row in table.rows:
        images = {"test image": table.test_files(row)}
        if table.layout.num_golden == 1:
            images["golden"] = table.golden_files(row)
        for what, files in images.items():
            found = {known for path in files if isinstance(known := sizes.get(path), tuple)}
            if len(found) > 1:
                shown = ", ".join(f"{width}x{height}" for width, height in sorted(found))
                text = f"lights of the {what} have different sizes: {shown}"
                yield Problem(table.where(row), text, "photograph all lights at one size", "warning")


def _size_of(item: _Named) -> _Size | Problem:
    """(width, height) in pixels of a file that can be decoded, else what is wrong with it."""
    try:
        return read_rgb(item[1]).size
    except DatasetError as error:
        return error.problems[0]


def _how_to_find(row: PairRow, path: Path, ext: str) -> str:
    if row.object_name.endswith(ext):
        return f"object_name already ends in {ext}: remove it from the CSV"
    return how_to_find(
        path,
        renamed="set dataset.classify.image_ext: {suffix}",
        folders="check images_dir and the CSV's paths",
        otherwise="check object_name, the lights in input_map, and image_ext",
    )


def _by_content(table: PairTable) -> Iterator[Entry]:
    """The test images of a split."""
    for row in table.rows:
        yield Entry(table.where(row), row.object_name, content_of(table.test_files(row)))


def _check_registration(table: PairTable) -> Iterator[Problem]:
    """Rows whose test image lies beside its golden, by phase correlation of the first light."""
    import numpy as np

    from fiducial.data.registration import shift_between

    if table.layout.num_golden > 1:
        return
    far: list[tuple[float, PairRow]] = []
    looked_at = spread(table.rows, REGISTERED_ROWS)
    for row in looked_at:
        try:
            golden, test = (
                read_rgb(files[0]).convert("L") for files in (table.golden_files(row), table.test_files(row))
            )
        except DatasetError:
            continue  # named by the check of the files
        if golden.size != test.size:
            test = test.resize(golden.size)
        dy, dx = shift_between(np.asarray(golden, dtype=np.float32), np.asarray(test, dtype=np.float32))
        if max(abs(dy), abs(dx)) > MAX_SHIFT:
            far.append((max(abs(dy), abs(dx)), row))
    far.sort(key=lambda item: -item[0])
    if far:
        worst = ", ".join(f"line {row.line} by {distance:.1f}" for distance, row in far[:3])
        share = f"{len(far)} of {len(looked_at)} test images"
        found = f"{share} lie more than {MAX_SHIFT:g} pixels beside their golden ({worst})"
        fix = "set dataset.classify.align: shift, or register the images"
        yield Problem(str(table.csv_path), found, fix, "warning")


def _first_per(rows: Iterable[PairRow], key: Callable[[PairRow], str]) -> list[PairRow]:
    return list({key(row): row for row in reversed(list(rows))}.values())[::-1]
