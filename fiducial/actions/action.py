"""One verb of the command line, as data. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from fiducial.actions.result import Result

__all__ = ["Action", "Entry", "refused"]


class Entry(Protocol):
    """What does the work of an action: ``(task, run) -> result`` of :class:`fiducial.task.Task`, ``run.run.Run``."""

    def __call__(self, task: Any, run: Any, /) -> Result: ...


@dataclass(frozen=True)
class Action:
    """One verb of the command line. The spec's section of the same name holds its keys."""

    name: str
    help: str
    run: Entry | None = None
    """Does the work; imports what it needs. None for what makes no run (``check``), or is refused."""
    model_key: str = ""
    """The key of its section that names the model file it works on; empty when it needs none."""
    model_suffixes: tuple[str, ...] = ()
    """Names of the model files that it works on; empty: any that a predictor runs."""
    splits: tuple[str, ...] = ()
    """The parts of the dataset that it reads, where the task does not say others."""
    verbs: tuple[str, ...] = ()
    """Sub-verbs, one of which must be given: ``gallery add``."""
    default_verb: str = ""
    """The verb that is meant where none is given; empty: one must be."""
    side_by_side: bool = False
    """Whether several may run in one results folder at a time: what it writes there is written whole."""
    engine_folder: str = ""
    """Its folder below ``results_dir`` when it runs a TensorRT engine, as TAO Deploy has it; empty: its own name."""
    refusal: str = ""
    """Why it cannot be done, ``{title}`` for the network; empty when it can."""


def refused(name: str, why: str) -> Action:
    """The row of an action that people look for and that is not there."""
    return Action(name, help="", refusal=why)
