"""The loop of a search: asks for values, starts trainings, watches their validations, and says how each ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fiducial.automl.algorithms import Plan
from fiducial.automl.goal import Goal
from fiducial.automl.population import Population
from fiducial.automl.seeds import derived
from fiducial.automl.space import Space
from fiducial.automl.study import BEAT_S, place_of, standing, state, take_over
from fiducial.automl.trial import Ending, Job, Order
from fiducial.errors import UserError, one_line

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from fiducial.automl.study import Workers

__all__ = ["Launch", "Search", "Watcher", "best_of"]

Launch = Callable[[Order, int], Job]
"""Starts a training at one of the places; it may raise UserError."""
_BLANK = 3
"""Validations in a row without a number after which a training is given up."""
_LOOK_S = 30.0
"""Seconds between two looks for trials whose process is gone."""
_LEAVE_S = 90.0


class Watcher(Protocol):
    """Who is told of a search."""

    def moved(self, said: str) -> None:
        """Something happened; ``said`` is a line for people, or empty."""


@dataclass
class _Running:
    trial: Trial
    order: Order
    job: Job
    place: int
    own: bool
    started: float = field(default_factory=time.time)
    curve: dict[int, float] = field(default_factory=dict)
    kpis: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    blanks: int = 0
    beat: float = field(default_factory=time.monotonic)
    told: bool = False
    reached: bool = False
    """Whether it was trained as far as it was to be."""


def best_of(trials: Sequence[FrozenTrial], goal: Goal) -> FrozenTrial | None:
    """The best of the trainings that went to their end; of equal ones the first."""
    best: FrozenTrial | None = None
    for trial in trials:
        value = trial.value if trial.state == state("COMPLETE") else None
        if value is not None and goal.better(value, None if best is None else best.value):
            best = trial
    return best


@dataclass
class Search:
    """One process's part of a search."""

    study: Study
    space: Space
    plan: Plan
    goal: Goal
    workers: Workers
    launch: Launch
    watcher: Watcher
    seed: int
    own_seed: int
    """Of the training with the spec's own values."""
    places: int = 1
    run_baseline: bool = True
    terminal: bool = False
    """A training counts by its last epoch, not by its best."""
    population: Population | None = None
    interval: int = 0
    """Epochs of a generation."""
    pause_s: float = 0.3

    def __post_init__(self) -> None:
        self.running: list[_Running] = []
        self._looked = time.monotonic()
        self._distributions = self.space.distributions()

    def begin(self) -> list[int]:
        """Make the spec's own values the first training; take over what killed processes left. Returns the latter."""
        if self.run_baseline and self.population is None and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(self.space.own_params(), {"own": True}, skip_if_exists=True)
        return take_over(self.study, self.workers)

    def run(self) -> None:
        """Search until nothing is to come. Whatever ends it ends its trainings, which the next start continues."""
        try:
            while self._step():
                pass
        except BaseException:
            self._leave()
            raise

    @property
    def busy(self) -> set[int]:
        """The numbers of trainings whose processes live."""
        return {running.order.number for running in self.running}

    def trials(self) -> list[FrozenTrial]:
        """Those that count."""
        return standing(self.study.get_trials(deepcopy=False))

    def _step(self) -> bool:
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            take_over(self.study, self.workers)
        started = self._fill()
        moved = self._poll()
        if not (self.running or started or moved or self._waits()):
            return False
        if not started and not moved:
            time.sleep(self.pause_s)
        return True

    def _fill(self) -> bool:
        started = False
        while len(self.running) < self.places and self._may_start():
            self._start()
            started = True
        return started

    def _may_start(self) -> bool:
        trials = self.trials()
        if any(t.state == state("WAITING") for t in trials):
            return True
        if self.population is not None:
            proposal = self.population.next(trials)
            if proposal is None:
                return False
            self.study.enqueue_trial(proposal.params, proposal.notes)
            return True
        if self.plan.top_configs is not None:
            top = sum(t.state == state("COMPLETE") for t in trials)
            return top < self.plan.top_configs and len(trials) < 50 * self.plan.top_configs
        return self.plan.trials is None or len(trials) < self.plan.trials

    def _waits(self) -> bool:
        """Whether a training of another process decides what comes next."""
        trials = self.trials()
        running = any(t.state == state("RUNNING") for t in trials)
        return self.population is not None and running and not self.population.is_over(trials)

    def _start(self) -> None:
        trial = self.study.ask(self._distributions)
        notes = trial.user_attrs
        trial.set_user_attr("worker", self.workers.name)
        everything = self.study.get_trials(deepcopy=False)
        root, own = int(notes.get("root", place_of(trial.number, everything))), bool(notes.get("own"))
        trial.set_user_attr("root", root)
        earlier = [t for t in standing(everything) if t.number < trial.number]
        if "continues" not in notes and self.plan.trials is not None and len(earlier) >= self.plan.trials:
            trial.set_user_attr("beyond", True)  # another process was faster
            self.study.tell(trial, state=state("FAIL"))
            return
        values = notes.get("values") or (self.space.own_values() if own else self.space.values(trial.params))
        trial.set_user_attr("values", values)
        generation = notes.get("generation")
        order = Order(
            number=root,
            values=values,
            seed=self.own_seed if own else derived(self.seed, int(notes.get("member", root))),
            epochs=self.plan.epochs,
            until=None if generation is None else (generation + 1) * self.interval,
            begin_from=notes.get("parent"),
        )
        place = next(i for i in range(self.places) if i not in {r.place for r in self.running})
        try:
            job = self.launch(order, place)
        except UserError as error:
            self._fail(trial, Ending("failed", one_line(error)))
            self.watcher.moved(f"training {root} did not start: {one_line(error)}")
            return
        self.running.append(_Running(trial, order, job, place, own))
        self.watcher.moved(f"training {root} starts{' with the values of the spec' if own else ''}")

    def _poll(self) -> bool:
        moved = False
        for running in list(self.running):
            ending = running.job.ending()  # first: what is validated before it is read after it
            for epoch, kpis in running.job.validations():
                moved = True
                self._validated(running, epoch, kpis)
            if ending is not None:
                moved = True
                self.running.remove(running)
                self._ended(running, ending)
            elif not running.told and time.monotonic() - running.beat > BEAT_S:
                running.beat = time.monotonic()
                running.trial.set_user_attr("beat", time.time())
        return moved

    def _validated(self, running: _Running, epoch: int, kpis: Mapping[str, Any]) -> None:
        if running.told or running.reached:
            return
        score = self.goal.so_far(kpis)
        if score is None:
            running.blanks += 1
            if running.blanks >= _BLANK:
                found = f"{self.goal.name} was no number in {_BLANK} validations"
                self._give_up(running, Ending("not a number", found))
            return
        running.blanks = 0
        running.curve[epoch], running.kpis[epoch] = score, kpis
        running.trial.report(score, epoch)
        last = running.order.until or running.order.epochs
        if epoch >= last:
            running.reached = True
            if running.order.until is not None and running.order.until < running.order.epochs:
                running.job.stop()
        elif not running.own and running.trial.should_prune():
            self._prune(running, epoch)
        self.watcher.moved("")

    def _prune(self, running: _Running, epoch: int) -> None:
        self._note(running, running.kpis[epoch])
        self.study.tell(running.trial, state=state("PRUNED"))
        running.told = True
        running.job.stop()
        self.watcher.moved(f"training {running.order.number} is ended after epoch {epoch} of {running.order.epochs}")

    def _give_up(self, running: _Running, ending: Ending) -> None:
        self._note(running, {})
        self._fail(running.trial, ending)
        running.told = True
        running.job.stop()
        self.watcher.moved(f"training {running.order.number} failed: {ending.message}")

    def _ended(self, running: _Running, ending: Ending) -> None:
        if running.told:
            self.watcher.moved("")
            return
        number = running.order.number
        value = None
        if running.curve and (ending.kind == "finished" or (running.reached and ending.kind == "stopped")):
            epoch = self._counted(running)
            kpis = {**running.kpis[epoch], **ending.measured}
            value = self.goal.total(kpis)
            running.trial.set_user_attr("best_epoch", epoch)
            self._note(running, kpis)
        if value is not None:
            self.study.tell(running.trial, value)
            self.watcher.moved(f"training {number} finished: {self.goal.name} {value:.6g}")
            return
        if ending.kind in ("finished", "stopped"):
            words = "no validation gave a number" if ending.kind == "finished" else "it was ended from outside"
            kind = "not a number" if ending.kind == "finished" else "killed"
            ending = Ending(kind, f"{words} {ending.message}".strip())  # type: ignore[arg-type]
        self._note(running, {})
        self._fail(running.trial, ending)
        self.watcher.moved(f"training {number} failed ({ending.kind}): {ending.message}")

    def _counted(self, running: _Running) -> int:
        """The epoch that a training counts by: the one whose checkpoint is kept."""
        last = max(running.curve)
        if self.terminal or self.population is not None:
            return last
        main = self.goal.parts[0]
        return max(sorted(running.curve), key=lambda epoch: main.gain(float(running.kpis[epoch][main.name])))

    def _note(self, running: _Running, kpis: Mapping[str, Any]) -> None:
        """What is kept of a training beside its value."""
        plain = {name: value for name, value in kpis.items() if isinstance(value, int | float | str)}
        running.trial.set_user_attr("kpis", plain)
        running.trial.set_user_attr("seconds", round(time.time() - running.started, 1))

    def _fail(self, trial: Trial, ending: Ending) -> None:
        trial.set_user_attr("failure", {"kind": ending.kind, "message": ending.message})
        self.study.tell(trial, state=state("FAIL"))

    def _leave(self) -> None:
        """Ask all trainings to end, and wait for them."""
        until = time.monotonic() + _LEAVE_S
        for running in self.running:
            running.job.stop()
        while self.running and time.monotonic() < until:
            self.running = [running for running in self.running if running.job.ending() is None]
            time.sleep(0.05)
