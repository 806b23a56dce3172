"""What a training is continued from, and what has changed in its spec since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fiducial.checkpoints.finite import not_finite
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.errors import SHOWN, CheckpointError, Problem
from fiducial.redact import redact
from fiducial.run.console import LOGGER
from fiducial.run.resume import place_of
from fiducial.spec.knob import plain
from fiducial.task import ResumeRules

__all__ = ["compare", "first_usable"]


def first_usable(files: Sequence[Path], *, key: str | None) -> Checkpoint:
    """The first of the files (at least one) that is whole, finite and says where its training stood.

    Those before it are warned of. Raises: CheckpointError naming what is wrong with each, when there is none.
    """
    problems: list[Problem] = []
    for file in files:
        try:
            checkpoint = read(file, key=key)
            place_of(checkpoint.raw, file)
            if name := not_finite(checkpoint.raw):
                fix = "continue from an earlier checkpoint, with a lower learning rate"
                raise CheckpointError(str(file), f"the training diverged: {name} is not finite", fix)
        except CheckpointError as error:
            problems += error.problems
            continue
        for problem in problems:
            LOGGER.warning("%s · %s · continuing from %s instead", problem.where, problem.found, file.name)
        return checkpoint
    raise CheckpointError.of(problems)


def compare(rules: ResumeRules, checkpoint: Checkpoint, spec: Any) -> float:
    """Say which keys have other values than when the checkpoint was written: in silence they would surprise.

    Returns the learning rate of now divided by that of then, 1 where it is the same.

    Raises: CheckpointError naming the keys that cannot change.
    """
    before, now = (_flat(tree) for tree in (checkpoint.meta.get("hyper_parameters"), redact(plain(spec))))
    changed = [key for key in now if before.get(key, now[key]) != now[key] and not rules.is_free(key)]
    fixed = [_cannot_change(key, before[key], now[key], checkpoint.path) for key in changed if key in rules.fixed]
    if fixed:
        raise CheckpointError.of(fixed)
    for key in changed[:SHOWN]:
        stays = "; continuing with the checkpoint's" if key in rules.kept else ""
        counts = "; continuing with the new one" if key in rules.rates else ""
        LOGGER.warning(
            "%s: %s when %s was written, now %s%s", key, before[key], checkpoint.path.name, now[key], stays or counts
        )
    if len(changed) > SHOWN:
        LOGGER.warning("… and %d more keys differ", len(changed) - SHOWN)
    return next((float(now[key]) / float(before[key]) for key in changed if key in rules.rates and before[key]), 1.0)


def _cannot_change(key: str, before: Any, now: Any, path: Path) -> Problem:
    anew = f"begin a new training with its weights: another results_dir and train.pretrained_model_path={path}"
    return Problem(key, f"{now}, but {path.name} was trained with {before}", f"set {key}={before}; or {anew}")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a plain tree."""
    if not isinstance(tree, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
