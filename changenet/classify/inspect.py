"""A look at a dataset before it is trained on: quickly before every action, thoroughly in ``check``. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from changenet.classify.compare import (
    check_boards,
    check_itself,
    check_registration,
    check_repeated_rows,
    check_splits,
)
from changenet.classify.pictures import Images, decode_all, glance_at_some
from changenet.classify.rows import SPLITS, PairRow, PairTable, check_labels, read_pairs
from fiducial.data.checks import Missing, check_count, how_to_find, missing_files
from fiducial.data.files import is_file
from fiducial.errors import SHOWN, Problem, UserError
from fiducial.task import DataReport, SplitFacts

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec


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
        report.problems.extend(check_itself(table))
        if split != "infer":
            report.problems.extend(check_labels(table))
            report.problems.extend(check_repeated_rows(table))
        report.problems.extend(_check_classes(table, split, spec))
        images = Images.of(table)
        report.problems.extend(_look_for_files(table, images))
        if thorough:
            seen = decode_all(images)
            report.facts[split] = _facts(table, seen.sizes)
            report.problems.extend(seen.problems)
            report.problems.extend(check_registration(table))
        else:
            seen = glance_at_some(images)
            report.problems.extend(seen.problems)
        report.problems.extend(seen.check_brightness())
    for split in ("val", "test") if "train" in tables else ():
        if other := tables.get(split) or (_other_split(dataset, split) if thorough else None):
            report.problems.extend(check_boards(tables["train"], other))
            report.problems.extend(check_splits(tables["train"], other) if thorough else ())
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
    labels = Counter(row.fields["label"] for row in table.rows).most_common(SHOWN)
    told = "the labels are " + ", ".join(f"{label!r} ({count})" for label, count in labels)
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
            found = f"no defects: fpratio_sampling has nothing to draw; {told}"
            yield Problem(where, found, "add rows whose label is not PASS")
        elif not good:
            yield Problem(where, f"no PASS rows; {told}", "add good pairs, labelled PASS exactly", "warning")
    elif not defects or not good:
        found = ("no defects; " if not defects else "no PASS rows; ") + told
        yield Problem(where, found, "some metrics need both classes and will be empty", "warning")


def _look_for_files(table: PairTable, images: Images) -> list[Problem]:
    """Problems of files and folders that are not there, by CSV line; ``images`` leaves the files out from now on."""
    ext = table.layout.image_ext
    problems: list[Problem] = []
    if table.layout.num_golden > 1:
        for row in _first_per(table.rows, lambda row: row.golden_path):
            if not table.golden_names(row):
                found = f"no *{ext} image in {table.images_dir / row.golden_path}"
                fix = "with num_golden above 1, golden_path is the folder of the goldens"
                problems.append(Problem(table.where(row), found, fix))
    in_files: dict[str, dict[int, PairRow]] = {}
    missing: list[Missing] = []
    for row, path in images.take_out_missing():
        if column := _column_with_file(table, row, path):
            in_files.setdefault(column, {})[row.index] = row
        else:
            missing.append(Missing(table.where(row), path, _how_to_find(row, path, ext)))
    problems += [_names_files(table, column, list(rows.values())) for column, rows in in_files.items()]
    problems += missing_files(missing, "Image file wasn't found at {path}")
    return problems


def _column_with_file(table: PairTable, row: PairRow, path: Path) -> str | None:
    """The path column that makes ``path`` a file below a file."""
    columns = (name for name in ("input_path", "golden_path") if path.parent == table.images_dir / getattr(row, name))
    return next(columns, None) if is_file(path.parent) else None


def _names_files(table: PairTable, column: str, rows: list[PairRow]) -> Problem:
    named = getattr(rows[0], column)
    found = f"{column} names a file, {named}" + (f", as in {len(rows) - 1} other rows" if rows[1:] else "")
    fix = f"write its folder, {PurePosixPath(named).parent}: object_name, light and image_ext are added to it"
    return Problem(table.where(rows[0]), found, fix)


def _how_to_find(row: PairRow, path: Path, ext: str) -> str:
    if not row.object_name.strip():
        return "object_name is blank: write the first part of the file names"
    if ext and row.object_name.endswith(ext):
        return f"object_name already ends in {ext}: remove it from the CSV"
    return how_to_find(
        path,
        renamed="set dataset.classify.image_ext: {suffix}",
        folders="check images_dir and the CSV's paths, or map a container's folder with --map-path",
        otherwise="check object_name, the lights in input_map, and image_ext",
    )


def _first_per(rows: Iterable[PairRow], key: Callable[[PairRow], str]) -> list[PairRow]:
    return list({key(row): row for row in reversed(list(rows))}.values())[::-1]
