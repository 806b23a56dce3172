"""One action from its spec to its result: what the command line does, for programs too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.actions.action import Action
from fiducial.actions.registry import actions_of, folder_of
from fiducial.actions.result import Result
from fiducial.data.once import one_reading
from fiducial.errors import SHOWN, SpecError, UserError
from fiducial.run.console import LOGGER
from fiducial.run.ranks import global_rank, leave_group
from fiducial.spec.path_map import use_path_map
from fiducial.spec.shorthands import Shorthands
from fiducial.task import Task, dispatch

if TYPE_CHECKING:
    from fiducial.spec.compose import Composed, Source

__all__ = ["compose_for", "known_action", "perform", "read_spec", "routed", "run_action"]


def perform(
    tasks: Sequence[Task[Any]],
    action: str,
    spec: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    path_map: Mapping[str, str] | None = None,
    verb: str = "",
) -> Result:
    """Run an action of a network, as its command does, and return what came of it.

    ``spec``: a YAML file, or its content as a mapping; ``overrides`` in Hydra's grammar; ``path_map``: ``--map-path``.
    Nothing is printed on stdout and no process ends.

    Raises: UserError for what the user can mend; whatever else the action raises.
    """
    row = known_action(tasks, action)
    given = Path(spec).expanduser() if isinstance(spec, str | Path) else spec
    source = read_spec(tasks, given, overrides)
    row = routed(tasks, row, source)
    task, composed = compose_for(tasks, row, source, path_map or {})
    return run_action(task, row, composed, verb=verb)


def known_action(tasks: Sequence[Task[Any]], name: str) -> Action:
    """The action of a name. Raises: SpecError when there is none, or it is refused."""
    actions = actions_of(tasks)
    usable = ", ".join(action.name for action in actions.values() if not action.refusal)
    if name not in actions:
        raise SpecError(name, "no such action", f"use: {usable}")
    if actions[name].refusal:
        raise SpecError(name, actions[name].refusal.format(title=tasks[0].title), f"use: {usable}")
    return actions[name]


def routed(tasks: Sequence[Task[Any]], action: Action, source: Source) -> Action:
    """The action that is meant: ``train`` with ``automl_policy: on`` searches."""
    asked = source.tree.get("automl_policy")
    return known_action(tasks, "automl") if action.name == "train" and asked in ("on", True) else action


def read_spec(tasks: Sequence[Task[Any]], spec: Path | Mapping[str, Any] | None, overrides: Sequence[str]) -> Source:
    """The spec as it is written, not validated. Raises: SpecError when it cannot be read."""
    from fiducial.spec.compose import read_source  # brings pydantic, which --help does without

    kind = tasks[0].spec_model()

    def shorthands(name: str) -> Shorthands:
        named = name or getattr(kind.model_fields.get("task"), "default", "")
        return next((task for task in tasks if task.name == named), tasks[0]).shorthands

    return read_source(kind, spec, overrides, unwrap=tasks[0].unwrap, shorthands=shorthands)


def compose_for(
    tasks: Sequence[Task[Any]], action: Action, source: Source, path_map: Mapping[str, str], *, record: bool = True
) -> tuple[Task[Any], Composed[Any]]:
    """The validated spec and the task that it is for; what is odd about it is printed.

    Raises: SpecError; with ``record`` after a FAILURE record where the raw spec says where to.
    """
    from fiducial.spec.compose import compose

    kind = tasks[0].spec_model()
    if action.model_key and action.name not in kind.model_fields:
        raise SpecError(action.name, f"{tasks[0].title} has no such section in its spec", "use another action")
    use_path_map(path_map)
    try:
        composed = compose(
            kind, source, action=action.name, path_map=path_map, folder=lambda section: folder_of(action, section)
        )
        task = _task_of(tasks, composed, source)
    except SpecError as error:
        if record:
            _record_failure(source, action, path_map, error)
        raise
    for notice in composed.notices:
        LOGGER.info("%s", notice)
    for warning in composed.warnings[:SHOWN]:
        LOGGER.warning("%s", warning)
    return task, composed


def run_action(task: Task[Any], action: Action, composed: Composed[Any], *, verb: str = "") -> Result:
    """Run an action with its spec, in its folder. Raises: UserError, or whatever the action raises."""
    from fiducial.run.run import open_run

    if action.run is None:
        raise SpecError(action.name, "makes no run", "use the command line")
    LOGGER.info(
        "spec, where it differs from the defaults (experiment.yaml has all of it):\n%s", composed.changes.rstrip()
    )
    with open_run(action, task.title, composed, verb=verb) as run, one_reading():
        result = action.run(task, run)
    leave_group()
    return result


def _task_of(tasks: Sequence[Task[Any]], composed: Composed[Any], source: Source) -> Task[Any]:
    if "task" not in type(composed.spec).model_fields:
        return tasks[0]
    name = str(composed.spec.task)
    try:
        task = dispatch(tasks, name)
    except KeyError:
        known = ", ".join(task.name for task in tasks)
        raise SpecError("task", f"{name!r} is not available in this version", f"set task to one of: {known}") from None
    if "task" not in source.given:
        LOGGER.warning("task is not set in the spec: using its default, %s", name)
    return task


def _record_failure(source: Source, action: Action, path_map: Mapping[str, str], error: UserError) -> None:
    """Leave the FAILURE record of a spec that never became a run, where the raw YAML says where to."""
    from fiducial.run.lock import is_taken
    from fiducial.run.run import failure_message, writable_folder
    from fiducial.run.status import StatusWriter

    folder = source.results_dir(action.name, path_map, lambda section: folder_of(action, section))
    if folder is None or global_rank() != 0:
        return
    try:
        target = writable_folder(folder, "results_dir", "no status.json written")
        if is_taken(target):  # the record would be another run's
            return
        status = StatusWriter(target)
        status.write(failure_message(action.name.capitalize(), error), "FAILURE")
    except (SpecError, OSError) as problem:
        LOGGER.warning("%s", problem)
