"""``automl status``: how a search stands, from what lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiducial.actions.perform import read_spec
from fiducial.automl.page import write_page
from fiducial.automl.record import FILE, read_record
from fiducial.automl.study import alive
from fiducial.automl.table import lines_of
from fiducial.errors import SpecError
from fiducial.task import Task

__all__ = ["status"]


def status(
    tasks: Sequence[Task[Any]], spec: Path | None, overrides: Sequence[str], path_map: Mapping[str, str]
) -> None:
    """Print the table of a search, and write its page anew. Raises: SpecError, CheckpointError."""
    source = read_spec(tasks, spec, overrides)
    if source.problems:
        raise SpecError.of(source.problems)
    target = source.results_dir("automl", path_map)
    if target is None:
        raise SpecError("results_dir", "not set", "set results_dir to that of the search, or give its spec")
    folder = Path(target).expanduser()
    if not (folder / FILE).is_file() and (folder.parent / FILE).is_file():  # the folder of the search itself
        folder = folder.parent
    record = read_record(folder)
    working = alive(folder)
    for line in lines_of(record, all_rows=True):
        print(line)
    if record.finished:
        print("finished")
    else:
        print(f"{working} process(es) at work" if working else "no process is at work: give the command again to go on")
    print(f"report: {write_page(record, folder)}")
