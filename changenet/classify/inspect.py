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
from changenet.classify.rows import (
    SPLITS,
    PairRow,
    PairTable,
    check_labels,
    named_files,
    read_pairs,
)
from fiducial.data.checks import (
    Missing,
    check_brightness,
    check_count,
    check_whole_files,
    how_to_find,
    in_threads,
    missing_files,
    spread,
)
from fiducial.data.files import is_file
from fiducial.data.images import ImageFacts, has_16_bits, image_facts
from fiducial.errors import SHOWN, DatasetError, Problem, UserError
from fiducial.task import DataReport, SplitFacts

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

LOOKED_AT = 1000
"""Images of a split that every action takes a glance at, spread evenly; ``check`` decodes all."""
DEEP_IMAGES = 24
"""Images of a split that every action looks at for how bright they are, where they have 16 bits."""
_Named = tuple[PairRow, Path]
_Look = ImageFacts | Problem


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
        missing, present = _look_for_files(table)
        report.problems.extend(missing)
        if thorough:
            looks = dict(zip((path for _, path in present), in_threads(_look_at, present), strict=True))
            sizes = Counter(f"{look.size[0]}x{look.size[1]}" for look in looks.values() if isinstance(look, ImageFacts))
            report.facts[split] = _facts(table, dict(sizes.most_common()))
            report.problems.extend(_check_images(table, present, looks))
            report.problems.extend(_check_pages(table, present, looks))
            report.problems.extend(check_registration(table))
        else:
            glanced_at = spread(present, LOOKED_AT)
            report.problems.extend(check_whole_files((table.where(row), path) for row, path in glanced_at))
            deep = [item for item in spread(present, DEEP_IMAGES) if has_16_bits(item[1])]
            looks = dict(zip((path for _, path in deep), in_threads(_look_at, deep), strict=True))
        report.problems.extend(_check_brightness(table, looks))
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
    there = in_threads(lambda item: is_file(item[1]), named)
    gone = [item for item, found in zip(named, there, strict=True) if not found]
    in_files: dict[str, dict[int, PairRow]] = {}
    missing: list[Missing] = []
    for row, path in gone:
        if column := _column_with_file(table, row, path):
            in_files.setdefault(column, {})[row.index] = row
        else:
            missing.append(Missing(table.where(row), path, _how_to_find(row, path, ext)))
    problems += [_names_files(table, column, list(rows.values())) for column, rows in in_files.items()]
    problems += missing_files(missing, "Image file wasn't found at {path}")
    return problems, [item for item, found in zip(named, there, strict=True) if found]


def _column_with_file(table: PairTable, row: PairRow, path: Path) -> str | None:
    """The path column that makes ``path`` a file below a file."""
    columns = (name for name in ("input_path", "golden_path") if path.parent == table.images_dir / getattr(row, name))
    return next(columns, None) if is_file(path.parent) else None


def _names_files(table: PairTable, column: str, rows: list[PairRow]) -> Problem:
    named = getattr(rows[0], column)
    found = f"{column} names a file, {named}" + (f", as in {len(rows) - 1} other rows" if rows[1:] else "")
    fix = f"write its folder, {PurePosixPath(named).parent}: object_name, light and image_ext are added to it"
    return Problem(table.where(rows[0]), found, fix)


def _check_images(table: PairTable, present: list[_Named], looks: dict[Path, _Look]) -> Iterator[Problem]:
    """Images that cannot be decoded, and lights of one image that differ in size."""
    for row, path in present:
        look = looks[path]
        if isinstance(look, Problem):
            yield Problem(table.where(row), f"{look.where}: {look.found}", look.fix)
    for row in table.rows:
        images = {"test image": table.test_files(row)}
        if table.layout.num_golden == 1:
            images["golden"] = table.golden_files(row)
        for what, files in images.items():
            found = {known.size for path in files if isinstance(known := looks.get(path), ImageFacts)}
            if len(found) > 1:
                shown = ", ".join(f"{width}x{height}" for width, height in sorted(found))
                text = f"lights of the {what} have different sizes: {shown}"
                yield Problem(table.where(row), text, "photograph all lights at one size", "warning")


def _check_pages(table: PairTable, present: list[_Named], looks: Mapping[Path, _Look]) -> Iterator[Problem]:
    """Files with several pictures: lights as the pages of one file would be left out without a word."""
    more = [item for item in present if isinstance(look := looks[item[1]], ImageFacts) and look.has_more_pages]
    if more:
        row, path = more[0]
        found = f"{len(more)} images have several pages, of which the first is read (first: {path})"
        yield Problem(
            table.where(row), found, "write each light to a file of its own, and list them in input_map", "warning"
        )


def _check_brightness(table: PairTable, looks: Mapping[Path, _Look]) -> Iterator[Problem]:
    """Test images and goldens apart: one camera may have written 12 bits, another 16."""
    tests = {path for row in table.rows for path in table.test_files(row)}
    for what, are_tests in (("test images", True), ("goldens", False)):
        seen = (look for path, look in looks.items() if isinstance(look, ImageFacts) and (path in tests) == are_tests)
        yield from check_brightness(str(table.csv_path), (look.brightest for look in seen), what)


def _look_at(item: _Named) -> _Look:
    """What a file that can be decoded is like, else what is wrong with it."""
    try:
        return image_facts(item[1])
    except DatasetError as error:
        return error.problems[0]


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
