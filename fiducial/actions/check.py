"""``check``: everything that is wrong or odd about a spec and its files, without opening a model."""

from __future__ import annotations

from typing import Any

from fiducial.actions.action import Action
from fiducial.actions.models import not_trained_yet
from fiducial.actions.preflight import check_rules, inspect
from fiducial.data.checks import shortened
from fiducial.errors import Problem
from fiducial.run.console import LOGGER
from fiducial.spec.compose import Composed, to_yaml
from fiducial.task import Task


def check(
    task: Task[Any],
    action: Action,
    composed: Composed[Any],
    *,
    spec_only: bool,
    gpu_memory_gb: float | None = None,
) -> int:
    """Print what was found; returns the number of errors. Writes no files.

    ``spec_only`` looks at the spec alone, prints it resolved on stdout, and lists keys that are still ``???``.
    ``gpu_memory_gb``: where all is well with a training, also say what its steps take of such a GPU.
    """
    spec = composed.spec
    if spec_only:
        print(composed.yaml, end="")
        for key in composed.missing:
            LOGGER.info("%s: ??? - to be filled in", key)
        problems = check_rules(task, spec, action)
    else:
        found = inspect(task, composed, action, thorough=True)
        if found.data.facts:
            print(to_yaml({split: facts.plain() for split, facts in found.data.facts.items()}), end="")
        models = (not_trained_yet(problem, spec, action) for problem in found.models)
        problems = [*found.spec, *models, *found.data.problems]
    problems += [Problem(key, "still ???", "fill it in") for key in composed.missing if not spec_only]
    if gpu_memory_gb is not None:
        problems += _check_memory(task, action, composed, gpu_memory_gb, problems, spec_only=spec_only)
    for problem in shortened(problems):
        (LOGGER.error if problem.level == "error" else LOGGER.warning)("%s", problem)
    errors = sum(problem.level == "error" for problem in problems)
    LOGGER.info("%d error(s), %d warning(s)", errors, len(problems) - errors + len(composed.warnings))
    return errors


def _check_memory(
    task: Task[Any], action: Action, composed: Composed[Any], wanted: float, found: list[Problem], *, spec_only: bool
) -> list[Problem]:
    """Say what a training step takes; a warning where that is too much for a GPU of so many GB."""
    where = "--gpu-memory-gb"
    if action.name != "train" or spec_only:
        return [Problem(where, "nothing is trained here", "use it with: check train, without --spec-only")]
    if any(problem.level == "error" for problem in found):
        LOGGER.info("%s: not estimated before the errors are mended", where)
        return []
    from fiducial.training.memory import RESERVED, StepMemory  # needs torch

    memory = StepMemory(task.runtime(composed.spec), task.policy(composed.spec))
    size, peak = memory.batch_size, memory.peak(memory.batch_size) / 1e9
    largest = memory.largest(wanted * 1e9 * (1 - RESERVED))
    LOGGER.info("a training step with a batch of %d takes about %.1f GB of a GPU", size, peak)
    LOGGER.info("the largest batch that should fit into %g GB: %s", wanted, largest or "none")
    if largest >= size:
        return []
    fix = ", ".join((f"a batch of {largest}" if largest else "a smaller network or input", *task.memory_savers))
    return [Problem(where, f"{wanted:g}, and a batch of {size} takes about {peak:.1f} GB", fix, "warning")]
