"""Whether the files of a list are there, and three different ones for each pair; if not, why. No torch."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePath

from changenet.segment.files import ScenePair, Split
from fiducial.data.checks import Missing, how_to_find, in_threads, missing_files
from fiducial.data.files import IMAGE_SUFFIXES, UNREADABLE_FOLDER, is_file, is_folder, why_unreadable
from fiducial.errors import Problem

__all__ = ["check_distinct", "check_files"]

_Part = tuple[str, ScenePair, Path]


def check_files(split: Split) -> tuple[list[ScenePair], list[Problem]]:
    """The pairs whose files are all there; a problem for every file that is not, or for all that one folder lacks."""
    parts = [part for pair in split.pairs for part in _parts(pair)]
    is_there = dict(zip((path for *_, path in parts), in_threads(is_file, [path for *_, path in parts]), strict=True))
    problems: list[Problem] = []
    for kind in ("earlier image", "later image", "mask"):
        groups: dict[str, list[Missing]] = {}
        for what, pair, path in parts:
            if what == kind and not is_there[path]:
                seen, fix = _explained(what, pair, path)
                groups.setdefault(seen, []).append(Missing(split.where(pair), path, fix))
        for seen, missing in groups.items():
            problems += missing_files(missing, f"no {kind} {{path}}" + seen.replace("{", "{{").replace("}", "}}"))
    present = [pair for pair in split.pairs if all(is_there[path] for *_, path in _parts(pair))]
    return present, problems


def _parts(pair: ScenePair) -> Iterator[_Part]:
    yield "earlier image", pair, pair.before
    yield "later image", pair, pair.after
    if pair.label is not None:
        yield "mask", pair, pair.label


def _explained(what: str, pair: ScenePair, path: Path) -> tuple[str, str]:
    """What there is instead of a missing file, as the end of a sentence, and the fix."""
    if is_folder(path):
        return ", which is a folder", "list the images in it"
    if (wrong := why_unreadable(path)) and wrong[0] == UNREADABLE_FOLDER:
        return f": {wrong[0]}", wrong[1]
    if what == "mask":
        renamed, otherwise = (
            "set dataset.segment.label_suffix={suffix}",
            "check the list and dataset.segment.label_suffix",
        )
        if longer := _with_longer_name(path):
            return f"; there is {longer}", f"set dataset.segment.label_suffix={longer[len(path.stem) :]}"
    else:
        other = pair.after if what == "earlier image" else pair.before
        both_miss = not is_file(other)
        renamed = "write its name in the list" if both_miss else "both images have one name: rename it, or convert it"
        otherwise = "check the list"
        folder = path.parents[len(PurePath(pair.name).parts) - 1]
        if is_file(folder.parent / pair.name):
            return "", f"entries are names below {folder.name}, without that folder"
    told = how_to_find(
        path, renamed=renamed, folders="check the names of the folders under root_dir", otherwise=otherwise
    )
    seen, _, fix = told.partition(": ")
    return (f"; {seen}", fix) if seen.startswith("there is ") else ("", told)


def _with_longer_name(path: Path) -> str | None:
    """An image beside ``path`` whose name goes on where its stem ends: ``x_mask.png`` for ``x.png``."""
    try:
        names = _listing(path.parent, path.parent.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None
    for name in names[bisect_left(names, path.stem) :]:
        if not name.startswith(path.stem):
            return None
        if name[len(path.stem)] in "_-" and Path(name).suffix.lower() in IMAGE_SUFFIXES:
            return name
    return None


@lru_cache(maxsize=8)
def _listing(folder: Path, changed: int) -> list[str]:
    return sorted(os.listdir(folder))


def check_distinct(split: Split, pairs: Sequence[ScenePair]) -> Iterator[Problem]:
    """Pairs of which two parts are one file, by links or by the names of folders."""

    def ids(pair: ScenePair) -> list[tuple[int, int]]:
        found = [path.stat() for path in (pair.before, pair.after, pair.label) if path is not None]
        return [(one.st_dev, one.st_ino) for one in found]

    found = list(zip(pairs, in_threads(ids, pairs), strict=True))
    masks = [pair for pair, (before, after, *label) in found if label and label[0] in (before, after)]
    same = [pair for pair, (before, after, *_) in found if before == after]
    if masks:
        told = f"the mask is one of the images, the same file{_others(masks)}"
        yield Problem(split.where(masks[0]), told, "check the links, and dataset.segment.annotation_folder_name")
    if same:
        told = f"both images are one file{_others(same)}: nothing can have changed"
        fix = "check the links, and dataset.segment.change_image_folder_name"
        level = "error" if len(same) == len(pairs) else "warning"
        yield Problem(split.where(same[0]), told, fix, level)  # type: ignore[arg-type]


def _others(pairs: Sequence[ScenePair]) -> str:
    return f" (and in {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
