"""Data sets of class folders, ``<root>/<class>/**/picture``, and the names that classes are shown with. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from fiducial.data.once import once
from fiducial.data.sources import local_path, unwrapped
from fiducial.errors import DatasetError, Problem

__all__ = [
    "SUFFIXES",
    "ClassFolders",
    "Sample",
    "alike",
    "is_image",
    "namesake",
    "read_class_folders",
    "read_class_map",
    "read_class_maps",
    "read_flat",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture and the number of its class; -1 where it has none."""

    path: Path
    label: int


@dataclass(frozen=True)
class ClassFolders:
    """The pictures below ``root``, ordered by class, folder and name. ``names`` are what the classes are shown as."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    names: tuple[str, ...]

    @cached_property
    def counts(self) -> Counter[int]:
        """How many pictures each class has."""
        return Counter(sample.label for sample in self.samples)

    @property
    def empty(self) -> list[str]:
        """Classes whose folders hold no picture; they keep their numbers."""
        return [name for label, name in enumerate(self.classes) if not self.counts[label]]

    def name(self, label: int) -> str:
        """What a class is shown as."""
        return self.names[label]

    def shown_as(self, names: dict[str, str]) -> ClassFolders:
        """The same with the names of a class map; a folder that it does not name keeps its own."""
        return ClassFolders(self.root, self.classes, self.samples, tuple(names.get(n, n) for n in self.classes))


def read_class_folders(value: str, *, key: str, classes: Sequence[str] | None = None) -> ClassFolders:
    """The class folders at ``value`` of a spec key: a folder, archive or URL; listed once in a run.

    Classes are numbered in the order of their folders' names; with ``classes`` by their places in it, and every folder
    must be among them: so the queries of a gallery are read.

    Raises: SourceError where there is nothing; DatasetError for no class folder, no picture at all, or folders that
        ``classes`` lacks, all of them named.
    """
    known = None if classes is None else tuple(classes)
    return once(("classes", value, key, known), lambda: _read_class_folders(value, key, known))


def _read_class_folders(value: str, key: str, classes: tuple[str, ...] | None) -> ClassFolders:
    root = _class_root(unwrapped(local_path(value, key=key), key=key))
    if not root.is_dir():
        fix = "give the folder that holds a folder for each class"
        if key == "inference.input_path":
            fix = "set inference.inference_input_type=image, or give a folder of class folders"
        raise DatasetError(key, f"{root} is a file", fix)
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        fix = "put the pictures of each class into a folder of its own"
        raise DatasetError(key, f"no class folder in {root}", fix)
    order = tuple(found) if classes is None else classes
    number = {name: place for place, name in enumerate(order)}
    if unknown := [name for name in found if name not in number]:
        raise DatasetError.of(list(_mismatch(key, unknown, found, order)))
    samples = tuple(Sample(path, number[name]) for name in found for path in _pictures(root / name))
    if not samples:
        raise DatasetError(key, f"no picture in the class folders of {root}", f"pictures end in {', '.join(SUFFIXES)}")
    return ClassFolders(root, order, samples, order)


def read_flat(value: str, *, key: str) -> tuple[Path, ...]:
    """One picture, or the pictures of a folder itself (not those in folders of it), sorted by name.

    Raises: SourceError where there is nothing; DatasetError for a folder without pictures.
    """
    path = local_path(value, key=key)
    if not path.is_dir():
        return (path,)
    found = tuple(sorted(path / entry.name for entry in os.scandir(path) if is_image(entry.name) and entry.is_file()))
    if not found:
        fix = "inference_input_type=classification_folder reads folders of classes"
        raise DatasetError(key, f"no picture in {path} itself", fix)
    return found


def read_class_map(value: str, *, key: str, classes: Sequence[str]) -> dict[str, str]:
    """The names of a class map by class folder: YAML ``folder: name``, or a list (or lines) in the folders' order.

    Raises: SourceError where there is no file; DatasetError when it is no such file, or lacks a folder of ``classes``.
    """
    return read_class_maps(value, key=key, parts=[classes])[0]


def read_class_maps(value: str, *, key: str, parts: Sequence[Sequence[str]]) -> tuple[dict[str, str], list[str]]:
    """The same for several data sets, and what it names that none of them has. Raises as :func:`read_class_map`."""
    path = local_path(value, key=key)
    fix = "write a line `folder: name` for each class"
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        found = f"{path} cannot be read as YAML ({' '.join(str(error).split())[:200]})"
        raise DatasetError(key, found, fix) from error
    wanted = sorted(set[str]().union(*parts))
    if isinstance(tree, dict):
        names = {str(folder): str(name) for folder, name in tree.items()}
        if missing := [name for name in wanted if name not in names]:
            fix = _closest(missing[0], names) or f"add a line `{missing[0]}: name to show`"
            raise DatasetError(key, f"{path} lacks the folders {_listed(missing)}", fix)
        return names, [name for name in names if name not in wanted]
    lines = tree if isinstance(tree, list) else [line.strip() for line in text.splitlines() if line.strip()]
    for classes in parts:
        if len(lines) != len(classes):
            raise DatasetError(key, f"{path} has {len(lines)} names for {len(classes)} class folders", fix)
    if any(sorted(classes) != wanted for classes in parts):
        raise DatasetError(key, f"{path} lists names, and the data sets have other class folders", fix)
    return dict(zip(wanted, map(str, lines), strict=True)), []


def is_image(name: str) -> bool:
    """Whether a file is read, by its name."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def namesake(name: str, others: Iterable[str]) -> str | None:
    """The first of ``others`` that differs from a name in nothing but capitals and blanks."""
    return next((other for other in others if _plain(other) == _plain(name)), None)


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in nothing but capitals and blanks."""
    first: dict[str, str] = {}
    return [(before, name) for name in names if (before := first.setdefault(_plain(name), name)) != name]


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()


def _class_root(folder: Path) -> Path:
    """``folder``, or the one it wraps where that holds folders of its own and no pictures, as archives have it."""
    while folder.is_dir():
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        inner = [entry for entry in os.scandir(entries[0].path) if not entry.name.startswith(".")]
        if not inner or not all(entry.is_dir() for entry in inner):
            return folder
        folder = Path(entries[0].path)
    return folder


def _pictures(folder: Path) -> Iterator[Path]:
    for here, _, names in sorted(os.walk(folder, followlinks=True)):
        parent = Path(here)  # a path is parsed once for all its pictures
        yield from (parent / name for name in sorted(names) if is_image(name))


def _mismatch(key: str, unknown: Sequence[str], found: Sequence[str], order: Sequence[str]) -> Iterator[Problem]:
    counted = f"{len(unknown)} of {len(found)} class folders are not among the {len(order)} of the gallery"
    for name in unknown[:_NAMED]:
        fix = _closest(name, order) or "add pictures of it to the gallery, or remove the folder"
        yield Problem(key, f"{name!r}: {counted}", fix)


def _closest(name: str, others: Sequence[str] | dict[str, str]) -> str:
    same = namesake(name, others)
    return f"there is {same!r}: capitals and blanks count" if same is not None else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
