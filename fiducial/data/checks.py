"""What every look at a dataset needs, whatever the network: each task's checks are made of these. No torch.

Spec keys that a message names, and what an entry is called, come from the caller.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fiducial.data.images import check_whole, nearby
from fiducial.errors import Problem, UserError

__all__ = [
    "Entry",
    "check_count",
    "check_overlap",
    "check_repeats",
    "check_whole_files",
    "content_of",
    "how_to_find",
    "in_threads",
    "problems_at",
    "spread",
]

_THREADS = 8
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def in_threads(look: Callable[[_Item], _Found], items: Iterable[_Item]) -> list[_Found]:
    """What ``look`` returns for each item, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(look, items))


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most ``most`` of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def problems_at(where: str, error: UserError) -> list[Problem]:
    """The problems of ``error``, told of the place in a list that names the file."""
    return [Problem(where, f"{problem.where}: {problem.found}", problem.fix) for problem in error.problems]


def check_whole_files(files: Iterable[tuple[str, Path]]) -> Iterator[Problem]:
    """Images that are cut off or empty, among (where it is named, the file)."""

    def look(item: tuple[str, Path]) -> list[Problem]:
        where, path = item
        try:
            check_whole(path)
        except UserError as error:
            return problems_at(where, error)
        return []

    for problems in in_threads(look, files):
        yield from problems


def how_to_find(path: Path, *, renamed: str, folders: str, otherwise: str) -> str:
    """The fix for a file that is missing.

    ``renamed``: what to do when one lies beside it with another extension (``{suffix}``) or other capitals;
    ``folders``: what to look at when there is no such folder; ``otherwise``: when neither explains it.
    """
    beside = nearby(path)
    if beside:
        return f"there is {beside[0].name}: {renamed.format(suffix=beside[0].suffix)}"
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist: {folders}"
    return otherwise


def check_count(
    where: str, num: int, what: str, *, batch_size: int, num_devices: int, batch_key: str, devices_key: str
) -> Iterator[Problem]:
    """Fewer entries (called ``what``) than a batch holds, or than one batch for every device."""
    if num < batch_size:
        yield Problem(where, f"{num} {what} are fewer than one batch of {batch_size}", f"lower {batch_key}")
    elif num < batch_size * num_devices:
        found = f"{num} {what} for {num_devices} devices with batches of {batch_size}"
        yield Problem(where, found, f"lower {batch_key} or {devices_key}", "warning")


def check_repeats(where: str, names: Iterable[str]) -> Iterator[Problem]:
    """Entries that a list has more than once."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        found = f"{len(repeated)} entries are listed more than once (first: {repeated[0]})"
        yield Problem(where, found, "each counts as often as it is listed", "warning")


@dataclass(frozen=True)
class Entry:
    """An entry of a split, for :func:`check_overlap`: equal keys are the same thing, None equals nothing."""

    where: str
    name: str
    key: Hashable | None


def check_overlap(train: Iterable[Entry], other: Iterable[Entry], found: str) -> Iterator[Problem]:
    """Entries of another split that are trained on; ``found`` tells of ``{name}``, and of ``{where}`` in training."""
    trained = {entry.key: entry for entry in train if entry.key is not None}
    for entry in other:
        if entry.key in trained:
            told = found.format(name=entry.name, where=trained[entry.key].where)
            yield Problem(entry.where, told, "keep training and test images apart", "warning")


def content_of(files: Iterable[Path]) -> bytes | None:
    """A key of what the files hold together; None when one cannot be read."""
    total = hashlib.sha256()
    for path in files:
        try:
            total.update(path.read_bytes())
        except OSError:
            return None
    return total.digest()
