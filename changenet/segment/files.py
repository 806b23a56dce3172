"""The files of a segment dataset: which pairs a split lists, where their images and masks are. No torch.

``root_dir`` holds a folder (or an archive) each for the earlier images, the later ones, the masks and the lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, overload
from urllib.parse import urlsplit, urlunsplit

from fiducial.data.archives import ARCHIVE_SUFFIXES, archive_stem
from fiducial.data.files import is_file, is_folder, why_unreadable
from fiducial.data.listing import plain_files
from fiducial.data.once import once
from fiducial.data.sources import local_path
from fiducial.data.text import read_text
from fiducial.errors import DatasetError, Problem, SourceError
from fiducial.spec.path_map import mapped

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["CALIBRATION_KEY", "SPLITS", "ScenePair", "Split", "read_list", "read_split"]

SPLITS = {"train": "train_split", "val": "validation_split", "test": "test_split", "infer": "predict_split"}
"""Split to the key of ``dataset.segment`` that names its list."""
CALIBRATION_KEY = "dataset.segment.quant_calibration_dataset.images_dir"
CALIBRATION_LIST = "predict"
_ROOT_KEY = "dataset.segment.root_dir"
_MAX_DEPTH = 3
_REQUIRED = 3
"""Parts without which a folder is no data set: the list and the images."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LINE_END = re.compile("\r\n|\r|\n")  # str.splitlines also breaks at characters that names may hold


@dataclass(frozen=True, slots=True)
class ScenePair:
    """One line of a list: two images of one place, and the mask of what changed."""

    name: str
    """The entry: the name of both images, below their folders."""
    line: int
    before: Path
    after: Path
    label: Path | None
    """None where masks are not read (inference)."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The images, and the mask where it is read."""
        return (self.before, self.after) if self.label is None else (self.before, self.after, self.label)


@dataclass(frozen=True)
class Split:
    """The pairs of one list file."""

    list_path: Path
    pairs: Sequence[ScenePair]
    root: Path | None = None
    """The folder of the whole data set; None where its parts came from archives of their own."""

    def where(self, pair: ScenePair) -> str:
        """File and line, for messages."""
        return f"{self.list_path}:{pair.line}"

    @property
    def names(self) -> list[str]:
        """The entries, in order."""
        return [pair.name for pair in self.pairs]


@dataclass(frozen=True)
class _Listed(Sequence[ScenePair]):
    """The pairs of a list, each made when it is asked for: three paths take four times the memory of their names."""

    entries: Sequence[tuple[int, str]]
    before: Path
    after: Path
    labels: Path | None
    label_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, place: int) -> ScenePair: ...
    @overload
    def __getitem__(self, place: slice) -> list[ScenePair]: ...
    def __getitem__(self, place: int | slice) -> ScenePair | list[ScenePair]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        line, name = self.entries[place]
        label = self.labels / self.label_names[place] if self.labels else None
        return ScenePair(name, line, self.before / name, self.after / name, label)


def read_split(data: SegmentDataset, split: str) -> Split:
    """The pairs of ``train``, ``val``, ``test``, ``infer`` or ``calibration``, whether or not their files exist.

    They are read once in a run.

    Raises: DatasetError when root_dir or the split is not set, the list is missing or has no entry; SourceError when
        root_dir or one of its parts cannot be had.
    """
    return once(("scenes", split, data.model_dump_json()), lambda: _read_split(data, split))


def _read_split(data: SegmentDataset, split: str) -> Split:
    if split == "calibration":
        key, list_name, root_dir = (
            CALIBRATION_KEY,
            CALIBRATION_LIST,
            data.quant_calibration_dataset.images_dir,
        )
    else:
        key, list_name, root_dir = _ROOT_KEY, getattr(data, SPLITS[split]), data.root_dir
    if not root_dir:
        raise DatasetError(key, "not set", "name the folder that holds the images, the masks and the lists")
    if not list_name:
        raise DatasetError(f"dataset.segment.{SPLITS[split]}", "not set", "name a list file, without .txt")
    names = [data.list_folder_name, data.image_folder_name, data.change_image_folder_name]
    if split in ("train", "val", "test"):
        names.append(data.annotation_folder_name)
    lists, before, after, *masks = _parts(root_dir, names, key)
    labels = masks[0] if masks else None
    list_path = lists / f"{list_name}.txt"
    if not is_file(list_path):
        raise _no_list(list_path, split)
    entries = read_list(list_path, before)
    there = plain_files(labels, len(entries)) if labels else frozenset()
    label_names = [_label_name(labels, name, data.label_suffix, there) for _, name in entries] if labels else []
    pairs = _Listed(entries, before, after, labels, label_names)
    root = lists.parent if {lists.parent} == {before.parent, after.parent} else None
    return Split(list_path, pairs, root)


def _no_list(path: Path, split: str) -> DatasetError:
    key = f"dataset.segment.{SPLITS.get(split, 'root_dir')}"
    wrong = why_unreadable(path)
    if wrong and wrong[0] != "no such file":
        return DatasetError(str(path), f"no list, but {wrong[0]}", f"{wrong[1]}, or check {key}")
    there = ", ".join(name for name in _names_in(path.parent) if name.endswith(".txt")) or "no list at all"
    return DatasetError(str(path), f"no such list; there is {there}", f"check {key}")


def read_list(path: Path, images_dir: Path) -> list[tuple[int, str]]:
    """Line numbers (from 1) and entries of a list file: names below ``images_dir``.

    One entry a line; ``#`` begins a comment. Of several columns the first counts, as in TAO, unless the whole line is
    the name of a file in ``images_dir``: names may hold spaces. A path of a container that the path map leads into
    ``images_dir`` is the name of what is there.

    Raises: DatasetError for an unreadable or empty list, and for every entry that is another path: joined to the
        folders, both images and the mask would be one file.
    """
    entries, problems = [], []
    lines = _LINE_END.split(read_text(path, kind="a list", fix="save it as UTF-8 text, one image a line"))
    there = plain_files(images_dir, len(lines))
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        text = name if name in there else _entry(name, images_dir)
        if not text:
            continue
        path_there = mapped(text)
        name = text if path_there == text else _name_below(images_dir, path_there)
        if name and not _leads_out(name):
            entries.append((number, name))
        else:
            inside = _name_below(images_dir, path_there)
            fix = inside or f"names below {images_dir}, or map a container's folders with --map-path"
            found = f"{text} is a path, which both images and the mask would share"
            problems.append(Problem(f"{path}:{number}", found, f"write {fix}"))
    if problems:
        raise DatasetError.of(problems)
    if not entries:
        raise DatasetError(str(path), "no entries", "write one image name a line")
    return entries


def _entry(line: str, images_dir: Path) -> str:
    """The entry in a line, "" where there is none."""
    if line and is_file(images_dir / line):
        return line
    text = (line.partition("#")[0].split() or [""])[0]
    if "\\" in text and not is_file(images_dir / text):  # written on Windows
        return text.replace("\\", "/")
    return text


def _leads_out(name: str) -> bool:
    """Whether a path is not one below the folder that it is joined to."""
    first = PurePath(os.path.normpath(name)).parts[:1]
    return os.path.isabs(name) or bool(_DRIVE.match(name)) or first in ((), ("..",))


def _name_below(folder: Path, text: str) -> str | None:
    """The name below ``folder`` of what a path leads to; None when that lies elsewhere."""
    if _DRIVE.match(text):
        return None
    for real in (os.path.abspath, os.path.realpath):  # the first keeps links within the folder
        target, top = PurePath(real(folder / text)), PurePath(real(folder))
        if target != top and target.is_relative_to(top):
            return target.relative_to(top).as_posix()
    return None


def _names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it may not be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def _label_name(folder: Path, name: str, suffix: str, there: Collection[str]) -> str:
    """TAO's name of the mask (``.jpg`` replaced by the suffix), else the image's stem with the suffix.

    ``there``: files in the folder, perhaps not all.
    """
    by_tao = name.replace(".jpg", suffix)
    if by_tao in there:
        return by_tao
    by_stem = f"{PurePath(name).with_suffix('').as_posix()}{suffix}"
    return by_tao if is_file(folder / by_tao) or not is_file(folder / by_stem) else by_stem


def _parts(root_dir: str, names: list[str], key: str) -> list[Path]:
    """The folders of these names in what ``root_dir`` means."""
    if _is_web_folder(root_dir):  # which cannot be listed, but what it must hold is known
        return [_within(local_path(_below(root_dir, f"{name}.tar.gz"), key=key), name) for name in names]
    folder = local_path(root_dir, key=key)
    if not is_folder(folder):
        raise SourceError(f"{key} ({folder})", "a file, and no archive", _FIX)
    if not os.access(folder, os.R_OK | os.X_OK):
        raise SourceError(f"{key} ({folder})", "a folder that may not be read", "give this user the right to read it")
    root = _dataset_root(folder, names[:_REQUIRED])
    return [_part(root, name, key) for name in names]


def _is_web_folder(value: str) -> bool:
    return value.lower().startswith(("http://", "https://")) and archive_stem(urlsplit(value).path) is None


def _below(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _within(unpacked: Path, name: str) -> Path:
    """Where an archive of one part has its files: at the top, or in a folder of the part's name."""
    return unpacked / name if is_folder(unpacked / name) else unpacked


def _dataset_root(folder: Path, parts: list[str]) -> Path:
    """``folder``, or the nearest folder in it that has all parts: archives often hold one outer folder."""
    level = [folder]
    for _ in range(_MAX_DEPTH):
        for candidate in level:
            if all(_find_part(candidate, name) for name in parts):
                return candidate
        level = [parent / name for parent in level for name in _names_in(parent) if is_folder(parent / name)]
    return folder


def _find_part(root: Path, name: str) -> Path | None:
    """The folder or archive of this name."""
    candidates = [root / name, *(root / f"{name}{suffix}" for suffix in ARCHIVE_SUFFIXES)]
    return next((path for path in candidates if is_file(path) or is_folder(path)), None)


def _part(root: Path, name: str, key: str) -> Path:
    found = _find_part(root, name)
    if found is None:
        there = ", ".join(_names_in(root)[:8]) or "nothing"
        raise SourceError(f"{key} ({root})", f"no folder {name!r} and no {name}.tar.gz; there is {there}", _FIX)
    return found if is_folder(found) else _within(local_path(str(found), key=key), name)


_FIX = "root_dir holds the folders A, B, list and label, or the names that dataset.segment.*_folder_name say"
