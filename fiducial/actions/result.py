"""What an action gives back to a program that ran it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Result"]

Value = float | str | None


@dataclass(frozen=True)
class Result:
    """How an action ended: its numbers, and the files to go on with.

    ``kpis`` are those of the last record in status.json (of ``train``: of the last validation and epoch; NaN where
    there was nothing to compute one from). ``history`` holds ``(epoch, KPIs)`` of every validation of ``train`` in this
    process, epochs counted from 0. On several processes the numbers and files are those of the first one.
    """

    action: str
    folder: Path
    kpis: Mapping[str, Value] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    history: tuple[tuple[int, Mapping[str, Value]], ...] = ()
