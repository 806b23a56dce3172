"""Whether many files are there: a folder is listed once, instead of asking for each of its files. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from fiducial.data.files import is_file
from fiducial.data.threads import in_threads

__all__ = ["not_files"]

_FEW = 8
"""Files asked for in one folder below which it is not listed."""
_MORE = 32
"""How many times as many names a folder may hold as are asked for in it, before each is asked for after all."""


def not_files(paths: Iterable[str]) -> set[str]:
    """Those of the paths that are no plain files. Fast where the paths of one folder follow each other."""
    unsure: list[str] = []
    for folder, run in groupby(paths, key=os.path.dirname):
        asked = list(run)
        plain = _plain_files(folder, _MORE * len(asked)) if len(asked) >= _FEW else frozenset()
        unsure += [path for path in asked if os.path.basename(path) not in plain]
    there = in_threads(lambda path: is_file(Path(path)), unsure) if unsure else ()
    return {path for path, found in zip(unsure, there, strict=True) if not found}


def _plain_files(folder: str, most: int) -> frozenset[str] | set[str]:
    """Names of plain files in a folder, links not among them; as many as are found while reading ``most`` names."""
    found = set()
    try:
        with os.scandir(folder or ".") as entries:
            for entry, _ in zip(entries, range(most), strict=False):
                if entry.is_file(follow_symlinks=False):
                    found.add(entry.name)
    except (OSError, ValueError):  # each file tells what is wrong
        return frozenset()
    return found
