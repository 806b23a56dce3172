"""What there is to show of a search, as plain data: ``study.json``. Tables and pages are made from it, offline too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fiducial.automl.algorithms import Plan
from fiducial.automl.goal import Goal
from fiducial.automl.space import Space
from fiducial.automl.study import root_of
from fiducial.checkpoints.atomic import save_atomically
from fiducial.errors import CheckpointError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Record", "Row", "read_record", "rows_of"]

FILE = "study.json"
_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "ended early",
    "RUNNING": "running",
    "FAIL": "failed",
    "WAITING": "waiting",
}


@dataclass(frozen=True)
class Row:
    """One training."""

    number: int
    state: str
    value: float | None
    values: Mapping[str, Any]
    curve: Sequence[tuple[int, float]] = ()
    """Epochs, counted from 1, and what each validation came to."""
    best_epoch: int | None = None
    seconds: float | None = None
    failure: str = ""
    own: bool = False
    parent: int | None = None
    kpis: Mapping[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Those that were trained, as far as validations tell."""
        return max((epoch for epoch, _ in self.curve), default=0)


@dataclass(frozen=True)
class Record:
    """A search."""

    title: str
    algorithm: str
    metric: str
    """What is compared, in words."""
    direction: str
    epochs: int
    """Of a training that is not ended early."""
    trials: int | None
    """Trainings in all; None where something else ends the search."""
    places: int
    notes: Sequence[str] = ()
    space: Sequence[Mapping[str, str]] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    best: int | None = None
    importances: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What ``evaluate`` says of the best model."""
    evaluated_on: str = "test set"
    finished: bool = False
    updated: str = ""

    @property
    def headings(self) -> dict[str, str]:
        """Of the searched keys: as much of the end of each as no other has."""
        keys = [f".{entry['key']}" for entry in self.space]
        found = {}
        for key in keys:
            ends = (key[place:] for place in range(len(key) - 1, -1, -1) if key[place] == ".")
            end = next((end for end in ends if sum(other.endswith(end) for other in keys) == 1), key)
            found[key[1:]] = end[1:]
        return found

    @property
    def winner(self) -> Row | None:
        """The best training."""
        return next((row for row in self.rows if row.number == self.best), None)

    @property
    def spent(self) -> int:
        """Epochs trained by all."""
        return self.trained(self.rows)

    def trained(self, rows: Sequence[Row]) -> int:
        """The epochs of these trainings, without those of the ones that they went on from."""
        ends: dict[int | None, int] = {row.number: row.epochs for row in self.rows}
        return sum([row.epochs - ends.get(row.parent, 0) for row in rows if row.epochs])

    @property
    def seconds_per_epoch(self) -> float | None:
        """Of the trainings that are over."""
        over = [row for row in self.rows if row.seconds and row.epochs]
        epochs = self.trained(over)
        return sum(row.seconds or 0 for row in over) / epochs if epochs else None

    @property
    def seconds_left(self) -> float | None:
        """Till the end, as the trainings so far took it; None where nothing tells."""
        over = [row for row in self.rows if row.seconds]
        if not over or self.trials is None:
            return None
        left = max(0, self.trials - len(self.rows)) + sum(0.5 for row in self.rows if row.state == "running")
        return left * sum(row.seconds or 0 for row in over) / len(over) / max(1, self.places)

    def write(self, folder: Path) -> None:
        """Write the file."""
        text = json.dumps(asdict(self), indent=1)
        save_atomically(folder / FILE, partial(_write, text))


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def read_record(folder: Path) -> Record:
    """The record in the folder of a search. Raises: CheckpointError when there is none."""
    path = folder / FILE
    try:
        tree = json.loads(path.read_text("utf-8"))
        rows = [Row(**{**row, "curve": [tuple(point) for point in row["curve"]]}) for row in tree.pop("rows")]
        return Record(**tree, rows=rows)
    except (FileNotFoundError, NotADirectoryError):
        fix = "name the results_dir of a search"
        raise CheckpointError(str(folder), f"no search has begun here: there is no {FILE}", fix) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            str(path), f"cannot be read ({error})", "start the search again: it writes it anew"
        ) from None


def rows_of(trials: Sequence[FrozenTrial]) -> list[Row]:
    """A row for each training."""
    return [_row(trial) for trial in sorted(trials, key=root_of)]


def _row(trial: FrozenTrial) -> Row:
    notes = trial.user_attrs
    failure = notes.get("failure", {})
    return Row(
        number=root_of(trial),
        state=_STATES[trial.state.name],
        value=trial.value if trial.state.name == "COMPLETE" else None,
        values=notes.get("values", {}),
        curve=sorted(trial.intermediate_values.items()),
        best_epoch=notes.get("best_epoch"),
        seconds=notes.get("seconds"),
        failure=f"{failure['kind']}: {failure['message']}" if failure else "",
        own=bool(notes.get("own")),
        parent=notes.get("parent"),
        kpis=notes.get("kpis", {}),
    )


def new_record(
    title: str, plan: Plan, space: Space, goal: Goal, places: int, trials: Sequence[FrozenTrial], best: int | None
) -> Record:
    """The record of now."""
    return Record(
        title=title,
        algorithm=plan.algorithm,
        metric=goal.name,
        direction=goal.direction,
        epochs=plan.epochs,
        trials=plan.trials,
        places=places,
        notes=plan.notes,
        space=[{"key": d.path, "range": d.range_text(), "rule": d.rule} for d in space.dimensions],
        left_out=space.left_out,
        rows=rows_of(trials),
        best=best,
        updated=datetime.now().isoformat(timespec="seconds"),
    )
