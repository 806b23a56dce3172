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
from fiducial.data.listing import not_files
from fiducial.errors import Problem

__all__ = ["check_distinct", "check_files"]


def check_files(split: Split) -> tuple[list[ScenePair], list[Problem]]:
    """The pairs whose files are all there; a problem for every file that is not, or for all that one folder lacks."""
    pairs = list(split.pairs)
    gone = not_files(str(path) for kind in range(3) for pair in pairs for path in pair.files[kind : kind + 1])
    if not gone:
        return pairs, []
    problems: list[Problem] = []
    for kind, what in enumerate(("earlier image", "later image", "mask")):
        groups: dict[str, list[Missing]] = {}
        for pair in pairs:
            for path in pair.files[kind : kind + 1]:
                if str(path) in gone:
                    seen, fix = _explained(what, pair, path)
                    groups.setdefault(seen, []).append(Missing(split.where(pair), path, fix))
        for seen, missing in groups.items():
            problems += missing_files(missing, f"no {what} {{path}}" + seen.replace("{", "{{").replace("}", "}}"))
    return [pair for pair in pairs if not any(str(path) in gone for path in pair.files)], problems


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

    def alike(pair: ScenePair) -> tuple[bool, bool]:
        """Whether both images are one file; whether the mask is one of them."""
        before, after, *label = ((found.st_dev, found.st_ino) for found in map(Path.stat, pair.files))
        return before == after, bool(label) and label[0] in (before, after)

    found = in_threads(alike, pairs)
    masks = [pair for pair, (_, is_mask) in zip(pairs, found, strict=True) if is_mask]
    same = [pair for pair, (is_same, _) in zip(pairs, found, strict=True) if is_same]
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
