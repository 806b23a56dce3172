"""A look at a dataset before it is used: quickly before every action, at everything in ``check``. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from changenet.segment.files import ScenePair, Split, read_split
from changenet.segment.geo import check_alignment
from changenet.segment.rasters import RASTER_FIX, TIFF, read_info
from changenet.segment.reading import LabelEncoding, SceneReader, image_size, mask_values
from fiducial.data.checks import (
    Entry,
    check_count,
    check_overlap,
    check_repeats,
    how_to_find,
    in_threads,
    problems_at,
    spread,
)
from fiducial.data.images import read_image
from fiducial.errors import DatasetError, Problem, UserError
from fiducial.task import DataReport, SplitFacts

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

SCANNED = 500
"""Pairs of a split whose masks and sizes every action looks at, spread evenly; ``check`` looks at all."""
DARK = 1 << 13
"""16-bit pictures none of which has a value as high hold fewer bits: cameras have 12, say."""
MAX_BETWEEN = 1e-3
"""Part of the pixels of ``norm`` masks that may be neither 0 nor 255 before a warning."""


def check_data(spec: ExperimentSpec, wanted: Sequence[str], thorough: bool) -> DataReport:
    """Look at some splits. ``thorough`` decodes every image and compares the splits.

    Problems of every split are collected before any is raised.
    """
    report = DataReport()
    data = spec.dataset.segment
    splits: dict[str, Split] = {}
    for name in wanted:
        if name == "val" and not data.validation_split:
            where = "dataset.segment.validation_split"
            report.problems.append(Problem(where, "not set", "training runs without validation", "warning"))
            continue
        try:
            splits[name] = read_split(data, name)
        except UserError as error:
            report.problems.extend(p for p in error.problems if p not in report.problems)
    for name, split in splits.items():
        present, problems = _check_files(split)
        report.problems.extend(problems)
        looked_at = present if thorough else spread(present, SCANNED)
        labels: dict[str, str] = {}
        details: dict[str, Any] = {"list": str(split.list_path)}
        report.problems.extend(_check_sizes(split, looked_at, must_agree=data.windows.enable))
        report.problems.extend(_check_pictures(split, looked_at, SceneReader.of(data, cached=False), decode=thorough))
        if any(pair.label for pair in looked_at):
            labels, problems = _check_masks(split, looked_at, LabelEncoding.of(data))
            details["masks read"] = len(looked_at)
            report.problems.extend(problems)
        report.facts[name] = SplitFacts(len(split.pairs), "rows", labels=labels, details=details)
        if name == "train":
            report.problems.extend(_check_count(split, spec))
        if thorough:
            report.problems.extend(check_repeats(str(split.list_path), split.names))
    for name in ("val", "test"):
        if "train" in splits and thorough and (other := splits.get(name) or _other(data, name)):
            both = _by_earlier_image(splits["train"]), _by_earlier_image(other)
            report.problems.extend(check_overlap(*both, "{name} is also in {where}"))
    return report


def _other(data: Any, name: str) -> Split | None:
    try:
        return read_split(data, name)
    except UserError:
        return None  # not what this action is about; its own check names it


def _check_files(split: Split) -> tuple[list[ScenePair], list[Problem]]:
    """The pairs whose files are all there, and a problem for every file that is not."""
    files = [path for pair in split.pairs for path in (pair.before, pair.after, pair.label) if path]
    is_there = dict(zip(files, in_threads(Path.is_file, files), strict=True))
    present, problems = [], []
    for pair in split.pairs:
        missing = [
            (what, path)
            for what, path in (("earlier image", pair.before), ("later image", pair.after), ("mask", pair.label))
            if path and not is_there[path]
        ]
        problems += [
            Problem(split.where(pair), f"no {what} {path}", _how_to_find(what, path)) for what, path in missing
        ]
        if not missing:
            present.append(pair)
    return present, problems


def _how_to_find(what: str, path: Path) -> str:
    is_mask = what == "mask"
    return how_to_find(
        path,
        renamed="set dataset.segment.label_suffix" if is_mask else "write its name in the list",
        folders="check the names of the folders under root_dir",
        otherwise="check the list" + (" and dataset.segment.label_suffix" if is_mask else ""),
    )


def _check_sizes(split: Split, pairs: Sequence[ScenePair], *, must_agree: bool) -> Iterator[Problem]:
    """Images and masks of one pair that differ in size; rasters that do not cover the same ground."""

    def look(pair: ScenePair) -> list[Problem]:
        paths = [path for path in (pair.before, pair.after, pair.label) if path]
        try:
            if any(path.suffix.lower() in TIFF for path in paths):
                return list(check_alignment([read_info(path) for path in paths]))
            sizes = [image_size(path) for path in paths]
        except UserError as error:
            return problems_at(split.where(pair), error)
        if len(set(sizes)) == 1:
            return []
        named = zip(("earlier", "later", "mask"), sizes, strict=False)
        found = "different sizes: " + ", ".join(f"{name} {height} x {width}" for name, (height, width) in named)
        if must_agree:
            return [Problem(split.where(pair), found, "windows need images and masks of one size")]
        return [Problem(split.where(pair), found, "each is resized to img_size; check that they fit", "warning")]

    for problems in in_threads(look, pairs):
        yield from problems


def _check_pictures(
    split: Split, pairs: Sequence[ScenePair], reader: SceneReader, *, decode: bool
) -> Iterator[Problem]:
    """Images that are cut off, or whose pixels mean nothing yet; ``decode`` those that are small enough to find all."""

    def look(pair: ScenePair) -> tuple[list[Problem], list[int]]:
        problems, highest = [], []
        for path in (pair.before, pair.after):
            try:
                highest.append(reader.check(path, decode=decode))
            except UserError as error:
                problems += problems_at(split.where(pair), error)
        return problems, [value for value in highest if value is not None]

    deep: list[int] = []
    for problems, highest in in_threads(look, pairs):
        yield from problems
        deep += highest
    if deep and max(deep) < DARK:
        found = f"{len(deep)} pictures of 16 bits whose values reach {max(deep)} of 65535: all but black to the network"
        yield Problem(str(split.list_path), found, f"{RASTER_FIX}: [0, {max(deep)}]")


def _check_masks(
    split: Split, pairs: Sequence[ScenePair], encoding: LabelEncoding
) -> tuple[dict[str, str], list[Problem]]:
    """Which share of the masks each class takes, and every mask that does not mean what the spec says."""

    def look(pair: ScenePair) -> NDArray[np.int64] | DatasetError:
        assert pair.label is not None
        try:
            values = mask_values(read_image(pair.label), where=str(pair.label))
        except DatasetError as error:
            return error
        return np.bincount(values.ravel(), minlength=256)

    total, problems = np.zeros(256, dtype=np.int64), []
    soft: list[ScenePair] = []
    blank: list[ScenePair] = []
    for pair, counts in zip(pairs, in_threads(look, pairs), strict=True):
        if isinstance(counts, DatasetError):
            problems += problems_at(split.where(pair), counts)
            continue
        total += counts
        if wrong := encoding.problem(counts):
            problems.append(Problem(split.where(pair), f"mask {pair.label}: {wrong[0]}", wrong[1]))
        elif encoding.num_between(counts):
            soft.append(pair)
            blank += [] if counts[255] else [pair]
    if not problems and (wrong := encoding.problem_of_all(total)):
        problems.append(Problem(str(split.list_path), wrong[0], wrong[1]))
    between = encoding.num_between(total)
    if soft and (between > MAX_BETWEEN * total.sum() or blank):
        found = (
            f"{len(soft)} masks hold values between 0 and 255 ({between / total.sum():.2%} of the pixels; first: "
            f"{(blank or soft)[0].label}); these pixels count as unchanged"
            + (f": all of them in {len(blank)} masks without any 255" if blank else "")
        )
        problems.append(
            Problem(str(split.list_path), found, "write masks of 0 and 255, without smooth edges", "warning")
        )
    if not problems and not _changed(total, encoding):
        found = f"no changed pixel in the {len(pairs)} masks looked at"
        problems.append(
            Problem(str(split.list_path), found, "check the masks: nothing can be learnt or found", "warning")
        )
    return _shares(total, encoding), problems


def _changed(total_256: NDArray[np.int64], encoding: LabelEncoding) -> int:
    return int(total_256[255] if encoding.norm else total_256[1 : encoding.num_classes].sum())


def _shares(total_256: NDArray[np.int64], encoding: LabelEncoding) -> dict[str, str]:
    """Share of the pixels of each class."""
    pixels = int(total_256.sum())
    if not pixels:
        return {}
    if encoding.norm:
        shares = {"unchanged": pixels - int(total_256[255]), "changed": int(total_256[255])}
    else:
        shares = {str(k): int(total_256[k]) for k in range(encoding.num_classes)}
        shares |= {"ignored": int(total_256[255])} if total_256[255] and encoding.num_classes <= 255 else {}
    return {name: f"{count / pixels:.2%}" for name, count in shares.items()}


def _check_count(split: Split, spec: ExperimentSpec) -> Iterator[Problem]:
    """Fewer pairs than a batch holds. Windows multiply the pairs."""
    data = spec.dataset.segment
    if data.windows.enable and not data.windows.per_image:
        return  # as many windows as cover the images, which are not open yet
    yield from check_count(
        str(split.list_path),
        len(split.pairs) * (data.windows.per_image if data.windows.enable else 1),
        "pairs",
        batch_size=data.batch_size,
        num_devices=spec.train.num_devices,
        batch_key="dataset.segment.batch_size",
        devices_key="train.num_gpus",
    )


def _by_earlier_image(split: Split) -> Iterator[Entry]:
    for pair in split.pairs:
        yield Entry(split.where(pair), pair.name, pair.before)
