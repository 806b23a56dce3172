"""What every look at a dataset needs, whatever the network: each task's checks are made of these. No torch.

Spec keys that a message names, and what an entry is called, come from the caller.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fiducial.data.files import IMAGE_SUFFIXES, is_file, is_folder, nearby, odd_name, same_name, why_unreadable
from fiducial.data.looks import CONTENT, GLANCE, Wrong, look_at
from fiducial.data.threads import in_threads
from fiducial.errors import SHOWN, Problem, UserError

__all__ = [
    "DARK",
    "Contents",
    "Entry",
    "Missing",
    "check_brightness",
    "check_count",
    "check_overlap",
    "check_repeats",
    "check_whole_files",
    "how_to_find",
    "in_threads",
    "missing_files",
    "missing_folder",
    "problems_at",
    "same_contents",
    "shortened",
    "spread",
]

DARK = 1 << 14
"""16-bit pictures none of which has a value as high hold fewer bits: cameras have 10, 12 or 14."""
_Item = TypeVar("_Item")


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most ``most`` of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def problems_at(where: str, error: UserError | Wrong) -> list[Problem]:
    """The problems of ``error``, told of the place in a list that names the file."""
    return [Problem(where, f"{problem.where}: {problem.found}", problem.fix) for problem in error.problems]


def check_whole_files(files: Iterable[tuple[str, Path]]) -> Iterator[Problem]:
    """Images that are cut off or empty, among (where it is named, the file)."""

    named = list(files)
    for (where, _), found in zip(named, look_at(GLANCE, [path for _, path in named]), strict=True):
        if isinstance(found, Wrong):
            yield from problems_at(where, found)


def how_to_find(path: Path, *, renamed: str, folders: str, otherwise: str) -> str:
    """The fix for a file that is missing.

    ``renamed``: what to do when one lies beside it with another extension (``{suffix}``); ``folders``: what to look at
    when there is no such folder; ``otherwise``: when nothing explains it.
    """
    missing = missing_folder(path)
    if odd := odd_name(str(path.relative_to((missing or path).parent))):
        return odd
    if (os.path.islink(path) or is_folder(path)) and (wrong := why_unreadable(path)):
        return f"it is {wrong[0]}: {wrong[1]}"
    for other in nearby(path):
        if same_name(path.name, other.name):
            return "there is one whose accents are other Unicode characters (composed or not): rename it, or the entry"
        if path.name.casefold() == other.name.casefold():
            return f"there is {other.name}: capitals count"
        if path.suffix.lower() != other.suffix.lower() and other.suffix.lower() in IMAGE_SUFFIXES:
            return f"there is {other.name}: {renamed.format(suffix=other.suffix)}"
    if missing:
        return f"{_not_a_folder(missing)}: {folders}"
    return otherwise


def missing_folder(path: Path) -> Path | None:
    """The outermost folder of ``path`` that does not exist (or is none); None when all do."""
    return next((folder for folder in reversed(path.parents) if not is_folder(folder)), None)


def _not_a_folder(path: Path) -> str:
    if is_file(path):
        return f"{path} is a file, not a folder"
    wrong = why_unreadable(path)
    return f"{path}: {wrong[0]}" if wrong and wrong[0] != "no such file" else f"the folder {path} does not exist"


@dataclass(frozen=True, slots=True)
class Missing:
    """An entry of a list whose file is not there: where it is listed, the file, and the fix."""

    where: str
    path: Path
    fix: str


def missing_files(entries: Iterable[Missing], found: str) -> list[Problem]:
    """One problem for each file that is missing, but one for all that one missing folder explains.

    ``found`` tells of ``{path}``.
    """
    groups: dict[Path, list[Missing]] = {}
    for entry in entries:
        groups.setdefault(missing_folder(entry.path) or entry.path, []).append(entry)
    problems = []
    for group in groups.values():
        first, others = group[0], len(group) - 1
        more = f", and {others} more below the same folder" if others else ""
        problems.append(Problem(first.where, found.format(path=first.path) + more, first.fix))
    return problems


def shortened(problems: Iterable[Problem]) -> list[Problem]:
    """The problems, of which those with one fix are told ten times and then counted."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.level, problem.fix), []).append(problem)
    return [kept for group in groups.values() for kept in _told(group)]


def _told(group: list[Problem]) -> list[Problem]:
    if len(group) <= SHOWN + 1:  # the line that counts one would be as long
        return group
    last = group[SHOWN - 1]
    more = f"{last.found} (and {len(group) - SHOWN} more like these)"
    return [*group[: SHOWN - 1], Problem(last.where, more, last.fix, last.level)]


def check_brightness(where: str, brightest: Iterable[int | None], what: str) -> Iterator[Problem]:
    """Pictures (called ``what``) of 16 bits whose values use the lower ones alone: all but black when divided by 256.

    ``brightest`` are the highest values of some of them, None for those of 8 bits.
    """
    count = highest = 0
    for value in brightest:
        if value is not None:
            count, highest = count + 1, max(highest, value)
    if not 0 < highest < DARK:
        return
    bits = max(8, highest.bit_length() + highest.bit_length() % 2)
    found = f"{count} {what} of 16 bits whose values reach {highest} of 65535: a camera's {bits} bits, all but black"
    fix = f"multiply them by {1 << (16 - bits)} where they are written, or write 8 bits"
    yield Problem(where, found, fix, "warning")


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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True)
class Contents(Generic[_Item]):
    """Items of a split whose ``files`` are compared byte for byte; ``entry`` names one, with the key of its content."""

    items: Sequence[_Item]
    files: Callable[[_Item], Sequence[Path | str]]
    entry: Callable[[_Item, Hashable], Entry]

    def keys(self) -> list[bytes | None]:
        """Of each item, a key of what its files hold together; None when one cannot be read."""
        counts = [len(self.files(item)) for item in self.items]
        found = look_at(CONTENT, (path for item in self.items for path in self.files(item)), total=sum(counts))
        return [_joined([next(found) for _ in range(count)]) for count in counts]


def _joined(digests: list[bytes | Wrong]) -> bytes | None:
    total = hashlib.sha256()
    for part in digests:
        if isinstance(part, Wrong):
            return None
        total.update(part)
    return total.digest()


def same_contents(one: Contents[_Item], other: Contents[_Item]) -> tuple[list[Entry], list[Entry]]:
    """The entries of both whose content the other has too, for :func:`check_overlap`."""
    keys = one.keys(), other.keys()
    shared = {key for key in keys[0] if key is not None} & set(keys[1])
    both = [
        [side.entry(item, key) for item, key in zip(side.items, of_side, strict=True) if key in shared]
        for side, of_side in zip((one, other), keys, strict=True)
    ]
    return both[0], both[1]
