"""What a user is told when something they gave cannot work.

Every such message has three parts: *where* (spec key, file, line), what was *found* there, and the *fix*.
Problems that can be known together are raised together.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from fiducial.redact import redact_text

SHOWN = 10
"""How many problems of one kind a message spells out before it only counts them."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong (``error``) or odd (``warning``) in what the user gave."""

    where: str
    found: str
    fix: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        text = redact_text(f"{self.where} · {self.found} · {self.fix}")
        text = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)  # one line, whatever is quoted in it
        return text.encode("utf-8", "backslashreplace").decode()  # names of files may be no text


class UserError(Exception):
    """Something the user can mend. ``str()`` lists every problem as *where · found · fix*.

    Construct with one problem's three parts, or with :meth:`of` from several problems. One text alone is taken apart
    again: that is how torch hands over what was raised in a loader's process.
    """

    problems: tuple[Problem, ...]

    def __init__(self, where: str, found: str | None = None, fix: str = "") -> None:
        if found is None:
            text = where.strip().rpartition(f"{type(self).__name__}: ")[2]
            where, found, fix = (*text.split(" · ", 2), "", "")[:3]
        self.problems = (Problem(where, found, fix),)
        super().__init__(str(self))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> UserError:
        """The same kind of error for several problems, which must not be empty."""
        kept = tuple(problems)
        if not kept:
            raise ValueError("an error needs at least one problem")
        error = cls(kept[0].where, kept[0].found, kept[0].fix)
        error.problems = kept
        error.args = (str(error),)
        return error

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems:", *(f"  {problem}" for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f"  … and {len(self.problems) - SHOWN} more")
        return "\n".join(lines)


class SpecError(UserError):
    """The spec (YAML or overrides) cannot be run."""


class DatasetError(UserError):
    """A dataset file is missing, unreadable or inconsistent."""


class CheckpointError(UserError):
    """A model file is missing, unsafe, damaged or does not fit."""


class SourceError(UserError):
    """A path, archive or remote location cannot be used."""


class MetricError(UserError):
    """A metric cannot be computed from what was given."""


class StorageError(UserError):
    """A disk takes no more, or nothing at all."""


class MachineError(UserError):
    """A process that a run needs was killed, or gives no answer."""


class TrainingError(UserError):
    """A training cannot go on as it is."""


class MissingDependencyError(UserError):
    """An optional package is needed and not installed."""


def one_line(text: object, limit: int = 300) -> str:
    """A text from elsewhere, fit for a message: on one line, printable, and not longer than ``limit``."""
    shown = " ".join(redact_text(str(text))[: 4 * limit].split())  # not of a part: half a secret is not known as one
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in shown)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def optional(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra of this package brings it.

    Raises: MissingDependencyError naming ``pip install 'fiducial[extra]'``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(module, f"not importable ({error})", f"pip install 'fiducial[{extra}]'") from error
