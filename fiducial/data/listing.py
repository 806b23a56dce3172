"""Whether many files are there: a folder is listed once, instead of asking for each of its files. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby, islice
from pathlib import Path

from fiducial.data.files import is_file
from fiducial.data.threads import in_threads

__all__ = ["not_files", "plain_files"]

_FEW = 8
"""Files asked for in one folder below which it is not listed."""
_MORE = 32
"""How many times as many names a folder may hold as are asked for in it, before each is asked for after all."""


def not_files(paths: Iterable[str]) -> set[str]:
    """Those of the paths that are no plain files. Fast where the paths of one folder follow each other."""
    unsure: list[str] = []
    for folder, run in groupby(paths, key=os.path.dirname):
        asked = list(run)
        plain = plain_files(folder, len(asked))
        unsure += [path for path in asked if os.path.basename(path) not in plain]
    there = in_threads(lambda path: is_file(Path(path)), unsure) if unsure else ()
    return {path for path, found in zip(unsure, there, strict=True) if not found}


def plain_files(folder: str | Path, asked: int) -> frozenset[str]:
    """Names of plain files in a folder, links not among them, for somebody who asks for so many.

    None of a folder in which few are asked for, and not all of one that holds many more: each is asked for then.
    """
    if asked < _FEW:
        return frozenset()
    try:
        with os.scandir(folder or ".") as entries:
            some = islice(entries, _MORE * asked)
            return frozenset(entry.name for entry in some if entry.is_file(follow_symlinks=False))
    except (OSError, ValueError):  # each file tells what is wrong
        return frozenset()
