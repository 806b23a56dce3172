"""A look at a dataset before it is used: quickly before every action, at everything in ``check``. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from changenet.segment.alignment import check_alignment
from changenet.segment.encoding import LabelEncoding
from changenet.segment.files import ScenePair, Split, read_split
from changenet.segment.looks import brightest_of, masks_of
from changenet.segment.presence import check_distinct, check_files
from changenet.segment.rasters import RASTER_FIX, is_raster
from changenet.segment.reading import SceneReader
from fiducial.data.checks import (
    DARK,
    Contents,
    Entry,
    check_count,
    check_overlap,
    check_repeats,
    in_threads,
    problems_at,
    same_contents,
    spread,
)
from fiducial.data.looks import SIZE, Wrong, look_at
from fiducial.errors import Problem, UserError
from fiducial.task import DataReport, SplitFacts

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

SCANNED = 500
"""Pairs of a split whose masks and sizes every action looks at, spread evenly; ``check`` looks at all."""
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
        reader = SceneReader.of(data, cached=False, root=split.root)
        present, problems = check_files(split)
        report.problems.extend(problems)
        report.problems.extend(check_distinct(split, present))
        looked_at = present if thorough else spread(present, SCANNED)
        labels: dict[str, str] = {}
        details: dict[str, Any] = {"list": str(split.list_path)}
        of_pictures = list(_check_pictures(split, looked_at, reader, decode=thorough))  # then their sizes are known
        report.problems.extend(_check_sizes(split, looked_at, reader, must_agree=data.windows.enable))
        report.problems.extend(of_pictures)
        if any(pair.label for pair in looked_at):
            labels, problems = _check_masks(split, looked_at, reader)
            details["masks read"] = len(looked_at)
            report.problems.extend(problems)
        report.facts[name] = SplitFacts(len(split.pairs), "rows", labels=labels, details=details)
        if name == "train":
            report.problems.extend(_check_count(split, spec))
        if thorough:
            report.problems.extend(check_repeats(str(split.list_path), split.names))
    for name in ("val", "test"):
        if "train" in splits and thorough and (other := splits.get(name) or _other(data, name)):
            both = same_contents(_images_of(splits["train"]), _images_of(other))
            report.problems.extend(check_overlap(*both, "{name} is also in {where}"))
    return report


def _other(data: Any, name: str) -> Split | None:
    try:
        return read_split(data, name)
    except UserError:
        return None  # not what this action is about; its own check names it


def _check_sizes(
    split: Split, pairs: Sequence[ScenePair], reader: SceneReader, *, must_agree: bool
) -> Iterator[Problem]:
    """Images and masks of one pair that differ in size; rasters that do not cover the same ground."""
    plain = [pair for pair in pairs if not any(map(is_raster, pair.files))]
    found = look_at(SIZE, (path for pair in plain for path in pair.files), total=3 * len(plain))
    for pair in plain:
        sizes = [next(found) for _ in pair.files]
        wrong = [seen for seen in sizes if isinstance(seen, Wrong)]
        if wrong:
            yield from problems_at(split.where(pair), wrong[0])
        else:
            yield from _uneven(split.where(pair), sizes, must_agree=must_agree)

    def look(pair: ScenePair) -> list[Problem]:
        try:
            return list(check_alignment([reader.info(path) for path in pair.files]))
        except UserError as error:
            return problems_at(split.where(pair), error)

    for problems in in_threads(look, [pair for pair in pairs if any(map(is_raster, pair.files))]):
        yield from problems


def _uneven(where: str, sizes: Sequence[Any], *, must_agree: bool) -> Iterator[Problem]:
    """``sizes``: (width, height) of the images and the mask of a pair."""
    if len(set(sizes)) == 1:
        return
    named = zip(("earlier", "later", "mask"), sizes, strict=False)
    found = "different sizes: " + ", ".join(f"{name} {height} x {width}" for name, (width, height) in named)
    if must_agree:
        yield Problem(where, found, "windows need images and masks of one size")
    else:
        yield Problem(where, found, "each is resized to img_size; check that they fit", "warning")


def _check_pictures(
    split: Split, pairs: Sequence[ScenePair], reader: SceneReader, *, decode: bool
) -> Iterator[Problem]:
    """Images that are cut off, or whose pixels mean nothing yet; ``decode`` those that are small enough to find all."""
    count = highest = 0
    values = brightest_of([path for pair in pairs for path in (pair.before, pair.after)], reader, decode=decode)
    for pair in pairs:
        for value in (next(values), next(values)):
            if isinstance(value, Wrong):
                yield from problems_at(split.where(pair), value)
            elif value is not None:
                count, highest = count + 1, max(highest, value)
    if count and highest < DARK:
        found = f"{count} pictures of 16 bits whose values reach {highest} of 65535: all but black to the network"
        yield Problem(str(split.list_path), found, f"{RASTER_FIX}: [0, {highest}] (colours as TIFF)")


def _check_masks(split: Split, pairs: Sequence[ScenePair], reader: SceneReader) -> tuple[dict[str, str], list[Problem]]:
    """Which share of the masks each class takes, and every mask that does not mean what the spec says."""
    encoding = reader.encoding
    total, problems, num_pixels = np.zeros(256, dtype=np.int64), [], 0
    soft: list[ScenePair] = []
    blank: list[ScenePair] = []
    hidden: list[ScenePair] = []
    labels = [pair.label for pair in pairs if pair.label is not None]
    for pair, facts in zip(pairs, masks_of(labels, reader), strict=True):
        if isinstance(facts, Wrong):
            problems += problems_at(split.where(pair), facts)
            continue
        counts_256 = facts.counts_256
        total += counts_256
        num_pixels += facts.num_pixels
        hidden += [pair] if facts.nodata == 0 and counts_256[0] else []
        if wrong := encoding.problem_of(facts):
            problems.append(Problem(split.where(pair), f"mask {pair.label}: {wrong[0]}", wrong[1]))
        elif encoding.num_between(counts_256):
            soft.append(pair)
            blank += [] if counts_256[255] else [pair]
    where = str(split.list_path)
    if not problems and (wrong := encoding.problem_of_all(total)):
        problems.append(Problem(where, wrong[0], wrong[1]))
    between = encoding.num_between(total)
    if soft and (between > MAX_BETWEEN * total.sum() or blank):
        found = (
            f"{len(soft)} masks hold values between 0 and 255 ({between / total.sum():.2%} of the pixels; first: "
            f"{(blank or soft)[0].label}); these pixels count as unchanged"
            + (f": all of them in {len(blank)} masks without any 255" if blank else "")
        )
        problems.append(Problem(where, found, "write masks of 0 and 255, without smooth edges", "warning"))
    if hidden:
        found = f"{len(hidden)} masks declare 0 to mean no data (first: {hidden[0].label}); it counts as unchanged"
        problems.append(Problem(where, found, "declare another number where pixels should not count", "warning"))
    if not problems and not _changed(total, encoding):
        found = f"no changed pixel in the {len(pairs)} masks looked at"
        problems.append(Problem(where, found, "check the masks: nothing can be learnt or found", "warning"))
    return _shares(total, num_pixels, encoding), problems


def _changed(total_256: NDArray[np.int64], encoding: LabelEncoding) -> int:
    return int(total_256[255] if encoding.norm else total_256[1 : encoding.num_classes].sum())


def _shares(total_256: NDArray[np.int64], num_pixels: int, encoding: LabelEncoding) -> dict[str, str]:
    """Share of the pixels of each class."""
    if not num_pixels:
        return {}
    known = int(total_256.sum())
    if encoding.norm:
        shares = {"unchanged": known - int(total_256[255]), "changed": int(total_256[255])}
    else:
        shares = {str(k): int(total_256[k]) for k in range(encoding.num_classes)}
    ignored = num_pixels - known + (int(total_256[255]) if not encoding.norm and encoding.num_classes <= 255 else 0)
    shares |= {"ignored": ignored} if ignored else {}
    return {name: f"{count / num_pixels:.2%}" for name, count in shares.items()}


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


def _images_of(split: Split) -> Contents[ScenePair]:
    """The pairs of a split; those whose images are the same byte for byte are one."""
    return Contents(
        split.pairs,
        lambda pair: (pair.before, pair.after),
        lambda pair, key: Entry(split.where(pair), pair.name, key),
    )
