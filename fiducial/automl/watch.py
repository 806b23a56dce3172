"""What a search says while it goes: log lines, status records, the table, ``study.json``, and the best spec so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fiducial.automl.prepare import Prepared
from fiducial.automl.record import Record, new_record
from fiducial.automl.search import Search, best_of
from fiducial.automl.study import root_of
from fiducial.automl.table import Live
from fiducial.automl.trial import Order, folder_of
from fiducial.automl.winner import remove_checkpoints, write_winner
from fiducial.checkpoints.resolving import resolve_model_file
from fiducial.errors import UserError
from fiducial.progress import clock
from fiducial.run.console import LOGGER
from fiducial.run.run import Run

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Board"]

_DRAW_S = 2.0
"""Seconds between two pictures of what only validations changed."""


@dataclass
class Board:
    """Told by a :class:`~fiducial.automl.search.Search` of everything that happens."""

    run: Run
    prepared: Prepared
    places: int

    def __post_init__(self) -> None:
        self.search: Search | None = None
        self.live = Live()
        self.record: Record | None = None
        self._drawn = 0.0
        self._best: int | None = None

    def moved(self, said: str) -> None:
        """Say it, and bring everything that is written up to date."""
        if not said and time.monotonic() - self._drawn < _DRAW_S:
            return
        self._drawn = time.monotonic()
        if said:
            self.live.interrupted()
            LOGGER.info("%s", said)
        record = self.update()
        if said:
            self.run.status.write(said, kpi=_kpis(record))
        self.live.draw(record)

    def update(self, **also: Any) -> Record:
        """Write ``study.json``, the best spec, and remove what losers left."""
        assert self.search is not None
        trials = self.search.trials()
        best = best_of(trials, self.prepared.goal)
        number = None if best is None else root_of(best)
        title = f"{self.prepared.task.title} {self.prepared.task.name}"
        prepared = self.prepared
        record = new_record(title, prepared.plan, prepared.space, prepared.goal, self.places, trials, number)
        before = self.record
        kept = {"evaluation": before.evaluation, "importances": before.importances} if before else {}
        self.record = replace(record, evaluated_on=prepared.evaluated_on, **{**kept, **also})
        self.record.write(self.run.folder)
        if best is not None and (number != self._best or self.record.finished):
            self._best = number
            write_winner(self.run.folder, root_of(best), self.best_tree(best), _facts(best), _remark(self.record))
        if prepared.spec.automl.automl_delete_intermediate_ckpt:
            self._remove(trials, number)
        return self.record

    def best_tree(self, best: FrozenTrial) -> dict[str, Any]:
        """The spec that trains the best model by itself."""
        prepared = self.prepared
        tree = prepared.tree(order_of(prepared, best), self.run.folder)
        root = self.run.composed.root_dir or str(self.run.folder.parent)
        for name in ("automl", "automl_policy"):
            tree.pop(name)
        return {**tree, "results_dir": root}

    def _remove(self, trials: list[FrozenTrial], best: int | None) -> None:
        assert self.search is not None
        keep = {root_of(t) for t in trials if not t.state.is_finished()} | self.search.busy
        keep |= set() if best is None else {best}
        generations = [t.user_attrs["generation"] for t in trials if "generation" in t.user_attrs]
        if generations:
            keep |= {root_of(t) for t in trials if t.user_attrs.get("generation", 0) >= max(generations) - 1}
        remove_checkpoints(self.run.folder, keep)


def order_of(prepared: Prepared, trial: FrozenTrial) -> Order:
    """What a training that is over was to do."""
    from fiducial.automl.seeds import derived

    notes, number = trial.user_attrs, root_of(trial)
    own = bool(notes.get("own"))
    seed = prepared.spec.train.seed if own else derived(prepared.seed, int(notes.get("member", number)))
    return Order(number, notes["values"], seed, prepared.plan.epochs)


def checkpoint_of(prepared: Prepared, board: Board, number: int) -> str | None:
    """The checkpoint of a training; None when there is none."""
    goal = prepared.goal
    try:
        found = resolve_model_file(
            board.run.folder / folder_of(number),
            results_dir=None,
            prefix=prepared.task.prefix,
            key="automl",
            monitor=goal.metric,
            mode="max" if goal.mode == "max" else "min",
            of_folder="latest" if prepared.terminal or prepared.plan.algorithm == "pbt" else "best",
        )
    except UserError:
        return None
    return str(found.path)


def _facts(best: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": root_of(best),
        "value": best.value,
        "epoch": best.user_attrs.get("best_epoch"),
        "kpis": best.user_attrs.get("kpis", {}),
        "values": best.user_attrs["values"],
    }


def _remark(record: Record) -> str:
    row = record.winner
    value = "" if row is None else f"{row.value:.6g}"
    again = (
        " Its values changed while it was trained: the checkpoint is the result." if record.algorithm == "pbt" else ""
    )
    return f"{record.metric} {value}, best of {len(record.rows)} ({record.algorithm}).{again}"


def _kpis(record: Record) -> dict[str, Any]:
    """TAO's numbers of a search in status.json."""
    best = record.winner
    running = [row.number for row in record.rows if row.state == "running"]
    left = record.seconds_left
    name = record.metric if " " not in record.metric else "score"
    waiting = None if record.trials is None else max(0, record.trials - len(record.rows)) * record.epochs
    return {
        f"best_{name}": None if best is None else best.value,
        "Best experiment id": None if best is None else best.number,
        "Current experiment id": max(running, default=None),
        "Number of epochs yet to start": waiting,
        "Time per epoch in seconds": record.seconds_per_epoch,
        "Estimated time for automl completion": None if left is None else clock(left),
    }
