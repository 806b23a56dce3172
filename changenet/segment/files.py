"""The files of a segment dataset: which pairs a split lists, where their images and masks are. No torch.

``root_dir`` holds a folder (or an archive) each for the earlier images, the later ones, the masks and the lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from fiducial.data.archives import ARCHIVE_SUFFIXES, archive_stem
from fiducial.data.sources import local_path
from fiducial.errors import DatasetError, SourceError

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["SPLITS", "ScenePair", "Split", "read_list", "read_split"]

SPLITS = {"train": "train_split", "val": "validation_split", "test": "test_split", "infer": "predict_split"}
"""Split to the key of ``dataset.segment`` that names its list."""
CALIBRATION_LIST = "predict"
_ROOT_KEY = "dataset.segment.root_dir"
_MAX_DEPTH = 3
_REQUIRED = 3
"""Parts without which a folder is no data set: the list and the images."""


@dataclass(frozen=True)
class ScenePair:
    """One line of a list: two images of one place, and the mask of what changed."""

    name: str
    """The entry as the list has it."""
    line: int
    before: Path
    after: Path
    label: Path | None
    """None where masks are not read (inference)."""


@dataclass(frozen=True)
class Split:
    """The pairs of one list file."""

    list_path: Path
    pairs: tuple[ScenePair, ...]

    def where(self, pair: ScenePair) -> str:
        """File and line, for messages."""
        return f"{self.list_path}:{pair.line}"

    @property
    def names(self) -> list[str]:
        """The entries, in order."""
        return [pair.name for pair in self.pairs]


def read_split(data: SegmentDataset, split: str) -> Split:
    """The pairs of ``train``, ``val``, ``test``, ``infer`` or ``calibration``, whether or not their files exist.

    Raises: DatasetError when root_dir or the split is not set, the list is missing or has no entry; SourceError when
        root_dir or one of its parts cannot be had.
    """
    if split == "calibration":
        key, list_name, root_dir = (
            "dataset.segment.quant_calibration_dataset.images_dir",
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
    if not list_path.is_file():
        there = ", ".join(sorted(path.name for path in lists.glob("*.txt"))) or "no list at all"
        raise DatasetError(
            str(list_path), f"no such list; there is {there}", f"check dataset.segment.{SPLITS.get(split, 'root_dir')}"
        )
    pairs = tuple(
        ScenePair(
            name,
            line,
            before / name,
            after / name,
            _label_path(labels, name, data.label_suffix) if labels else None,
        )
        for line, name in read_list(list_path, before)
    )
    return Split(list_path, pairs)


def read_list(path: Path, images_dir: Path) -> list[tuple[int, str]]:
    """Line numbers (from 1) and entries of a list file.

    One entry a line; ``#`` begins a comment. Of several columns the first counts, as in TAO, unless the whole line is
    the name of a file in ``images_dir``: names may hold spaces.

    Raises: DatasetError for an unreadable or empty list.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(str(path), f"cannot be read: {error}", "save it as UTF-8 text, one image a line") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not (text and (images_dir / text).is_file()):
            text = (text.partition("#")[0].split() or [""])[0]
        if "\\" in text and not (images_dir / text).is_file():  # written on Windows
            text = text.replace("\\", "/")
        if text:
            entries.append((number, text))
    if not entries:
        raise DatasetError(str(path), "no entries", "write one image name a line")
    return entries


def _label_path(folder: Path, name: str, suffix: str) -> Path:
    """TAO's name of the mask (``.jpg`` replaced by the suffix), else the image's stem with the suffix."""
    path = folder / name.replace(".jpg", suffix)
    by_stem = folder / f"{PurePath(name).with_suffix('').as_posix()}{suffix}"
    return path if path.is_file() or not by_stem.is_file() else by_stem


def _parts(root_dir: str, names: list[str], key: str) -> list[Path]:
    """The folders of these names in what ``root_dir`` means."""
    if _is_web_folder(root_dir):  # which cannot be listed, but what it must hold is known
        return [_within(local_path(_below(root_dir, f"{name}.tar.gz"), key=key), name) for name in names]
    folder = local_path(root_dir, key=key)
    if not folder.is_dir():
        raise SourceError(f"{key} ({folder})", "a file, and no archive", _FIX)
    root = _dataset_root(folder, names[:_REQUIRED])
    return [_part(root, name, key) for name in names]


def _is_web_folder(value: str) -> bool:
    return value.lower().startswith(("http://", "https://")) and archive_stem(urlsplit(value).path) is None


def _below(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _within(unpacked: Path, name: str) -> Path:
    """Where an archive of one part has its files: at the top, or in a folder of the part's name."""
    return unpacked / name if (unpacked / name).is_dir() else unpacked


def _dataset_root(folder: Path, parts: list[str]) -> Path:
    """``folder``, or the nearest folder in it that has all parts: archives often hold one outer folder."""
    level = [folder]
    for _ in range(_MAX_DEPTH):
        for candidate in level:
            if all(_find_part(candidate, name) for name in parts):
                return candidate
        level = sorted(child for parent in level for child in parent.iterdir() if child.is_dir())
    return folder


def _find_part(root: Path, name: str) -> Path | None:
    """The folder or archive of this name."""
    candidates = [root / name, *(root / f"{name}{suffix}" for suffix in ARCHIVE_SUFFIXES)]
    return next((path for path in candidates if path.exists()), None)


def _part(root: Path, name: str, key: str) -> Path:
    found = _find_part(root, name)
    if found is None:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise SourceError(f"{key} ({root})", f"no folder {name!r} and no {name}.tar.gz; there is {there}", _FIX)
    return found if found.is_dir() else _within(local_path(str(found), key=key), name)


_FIX = "root_dir holds the folders A, B, list and label, or the names that dataset.segment.*_folder_name say"
