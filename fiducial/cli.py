"""The command line: arguments to (task, action, spec), an exit code and a last line.

``main`` serves every network. It stays light: torch is imported by the action, after the spec has been validated.
Exit codes: 0 success, 1 every failure, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fiducial import __version__
from fiducial.actions.action import Action
from fiducial.actions.perform import compose_for, known_action, read_spec, routed, run_action
from fiducial.actions.registry import actions_of
from fiducial.errors import SpecError, UserError, one_line
from fiducial.machine import explained
from fiducial.run.allocator import keep_freed_memory
from fiducial.run.console import FAIL, LOGGER, PASS, last_line, set_up_console
from fiducial.run.threads import yield_when_idle
from fiducial.spec.path_map import parse_path_map
from fiducial.task import Task

PATH_MAP_VARIABLE = "FIDUCIAL_MAP_PATH"
NEEDS_NO_SPEC = ("default_specs", "schema")
"""Actions that are about keys, whatever a spec says."""
LOOKS = ("automl", "status")
"""The action and verb that only read what lies in a folder, which may be named without a spec."""


@dataclass(frozen=True)
class Command:
    """What the user asked for."""

    action: Action
    checked: Action | None = None
    verb: str = ""
    spec_file: Path | None = None
    spec_only: bool = False
    gpu_memory_gb: float | None = None
    overrides: tuple[str, ...] = ()
    path_map: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> Action:
        """The action whose spec is meant: the checked one for ``check``."""
        return self.checked or self.action


def main(tasks: Sequence[Task[Any]], argv: Sequence[str] | None = None, *, prog: str) -> int:
    """Run one command line; returns the exit code and prints the last line (argument errors raise SystemExit(2))."""
    yield_when_idle()
    keep_freed_memory()
    set_up_console()
    command: Command | None = None
    try:
        command = _parse(tasks, list(sys.argv[1:] if argv is None else argv), prog)
        code = _execute(tasks, command)
    except KeyboardInterrupt:
        LOGGER.error("interrupted")
        code = 130
    except UserError as error:
        LOGGER.error("%s", error)
        code = 1
    except SystemExit:
        if command is None:  # argparse has said what is wrong, or shown the help
            raise
        code = 1
    except Exception as error:
        if known := explained(error, Path.cwd()):
            LOGGER.error("%s", known)
        elif _is_memory(error):
            LOGGER.error("%s", one_line(f"{type(error).__name__}: {error}"))
            LOGGER.error("out of memory: %s", ", ".join(("lower the batch size", *tasks[0].memory_savers)))
        else:
            LOGGER.error("%s", "".join(traceback.format_exception(error)).rstrip())
            if _is_shared_memory(error):
                LOGGER.error("%s", _SHARED_MEMORY)
        code = 1
    last_line(PASS if code == 0 else FAIL)
    return code


_SHARED_MEMORY = "out of shared memory: enlarge /dev/shm (docker run --shm-size=8g) or lower the number of workers"


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _is_shared_memory(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("bus error", "shared memory", "/dev/shm"))


def _execute(tasks: Sequence[Task[Any]], command: Command) -> int:
    if command.action.name in NEEDS_NO_SPEC:
        from fiducial.actions import schema

        getattr(schema, command.action.name)(tasks, command.overrides, command.path_map)
        return 0
    if (command.action.name, command.verb) == LOOKS:
        from fiducial.automl.status import status

        status(tasks, command.spec_file, command.overrides, command.path_map)
        return 0
    source = read_spec(tasks, command.spec_file, command.overrides)
    is_run = command.checked is None
    target = routed(tasks, command.target, source)
    task, composed = compose_for(tasks, target, source, command.path_map, record=is_run)
    if command.checked is not None:
        from fiducial.actions.check import check

        errors = check(task, target, composed, spec_only=command.spec_only, gpu_memory_gb=command.gpu_memory_gb)
        return int(errors > 0)
    run_action(task, target, composed, verb=command.verb)
    return 0


def _parse(tasks: Sequence[Task[Any]], argv: list[str], prog: str) -> Command:
    names = f"tasks {', '.join(task.name for task in tasks)}" if len(tasks) > 1 else "one task"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{tasks[0].title}: {names}.",
        epilog="Every spec key can be overridden: train.num_epochs=5 'train.gpu_ids=[0,1]' (Hydra's grammar).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s (fiducial {__version__})")
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_ActionParser)
    actions = actions_of(tasks)
    runs = [action for action in actions.values() if action.run is not None]
    for action in actions.values():
        if not action.refusal:
            _add_command(commands, action.name, action, tasks, runs)
    aliases: dict[str, tuple[Task[Any], Action]] = {}
    for task in tasks:
        for action in runs:
            alias = f"{task.name}_{action.name}"
            aliases[alias] = (task, action)
            _add_command(commands, alias, action, tasks, runs, task)
    if argv and argv[0] in actions:
        known_action(tasks, argv[0])
    known, unknown = parser.parse_known_args(_with_verb(argv, actions, aliases))
    flags = [item for item in unknown if item.startswith("-")]
    if flags:
        parser.error(f"unknown option {flags[0]}; spec keys are set as key=value, for example train.num_gpus=2")
    overrides = tuple(unknown)
    if known.action in aliases:
        task, action = aliases[known.action]
        if "task" in tasks[0].spec_model().model_fields:
            overrides = (f"task={task.name}", *overrides)
    else:
        action = actions[known.action]
    checked = getattr(known, "checked", None)
    entries = [*os.environ.get(PATH_MAP_VARIABLE, "").split(","), *getattr(known, "map_path", [])]
    return Command(
        action=action,
        checked=actions[checked] if checked else None,
        verb=getattr(known, "verb", ""),
        spec_file=_spec_file(known, action.name),
        spec_only=getattr(known, "spec_only", False),
        gpu_memory_gb=getattr(known, "gpu_memory_gb", None),
        overrides=overrides,
        path_map=parse_path_map([entry for entry in entries if entry]),
    )


def _with_verb(
    argv: list[str], actions: Mapping[str, Action], aliases: Mapping[str, tuple[Task[Any], Action]]
) -> list[str]:
    """The arguments, with the verb that is meant where an action has one for that."""
    name = argv[0] if argv else ""
    action = actions.get(name) or (aliases[name][1] if name in aliases else None)
    if action is None or not action.default_verb or any(part in action.verbs for part in argv[1:]):
        return argv
    if argv[1:] and argv[1].isidentifier():  # a verb that is misspelt
        return argv
    return [name, action.default_verb, *argv[1:]]


def _add_command(
    commands: argparse._SubParsersAction[_ActionParser],
    name: str,
    action: Action,
    tasks: Sequence[Task[Any]],
    runs: Sequence[Action],
    task: Task[Any] | None = None,
) -> None:
    """An action, or with ``task`` its alias for that one."""
    help = f"{action.name} with task={task.name}" if task else action.help
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        allow_abbrev=False,
    )
    command.usage = f"{command.prog} [options] [key=value ...]"
    if action.name in NEEDS_NO_SPEC:
        return
    if action.name == "check":
        command.add_argument("checked", choices=[run.name for run in runs], help="the action that the spec is for")
        command.add_argument("--spec-only", action="store_true", help="look at the spec alone and print it resolved")
        command.add_argument(
            "--gpu-memory-gb",
            type=_gigabytes,
            metavar="GB",
            help="of train: estimate the memory of a step, and the largest batch for a GPU of this memory (24, 80)",
        )
    if action.verbs:
        verbs = "|".join(action.verbs)
        command.usage = f"{command.prog} {f'[{verbs}]' if action.default_verb else verbs} [options] [key=value ...]"
        command.add_argument("verb", choices=action.verbs, help="what to do")
    command.add_argument("-e", "--experiment_spec_file", metavar="SPEC.yaml", help="the spec")
    command.add_argument("--config", metavar="NAME", help="a spec that comes with the package, instead of -e")
    command.add_argument(
        "--map-path",
        action="append",
        default=[],
        metavar="FROM=TO",
        help=f"read paths of the spec below FROM as TO: /data=./data (also {PATH_MAP_VARIABLE}, comma-separated)",
    )
    command.spec_help = partial(_spec_help, tasks, action, [task] if task else tasks)


class _ActionParser(argparse.ArgumentParser):
    """The arguments of one action; its help ends with spec keys, made only when help is asked for."""

    spec_help: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (self.spec_help() if self.spec_help else "")


def _gigabytes(text: str) -> float:
    with suppress(ValueError):
        if 0 < (found := float(text)) < 1e6:
            return found
    raise argparse.ArgumentTypeError(f"{text} is no memory of a GPU, in GB")


def _spec_help(tasks: Sequence[Task[Any]], action: Action, meant: Sequence[Task[Any]]) -> str:
    """The keys of an action that people set, of the tasks that are meant."""
    if action.name == "check":
        return "\nspec keys: those of the action that is checked, as its --help shows them\n"
    from fiducial.spec.shown import help_lines  # brings pydantic

    others = [task.name for task in tasks if task not in meant]
    hidden = {*actions_of(tasks), *others, *(("task",) if others else ())} - {action.name}
    return help_lines(tasks[0].spec_model(), action.name, hidden=hidden)


def _spec_file(known: argparse.Namespace, action: str) -> Path | None:
    if action in NEEDS_NO_SPEC:
        return None
    if known.config:
        from fiducial.resources import resource_dir

        folder = resource_dir("configs")
        curated = {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.glob("*/*.yaml"))}
        found = curated.get(known.config.removesuffix(".yaml"))
        if found is None:
            raise SpecError("--config", f"no curated spec {known.config!r}", f"use one of: {', '.join(curated)}")
        return found
    if not known.experiment_spec_file and (action, getattr(known, "verb", "")) == LOOKS:
        return None
    if not known.experiment_spec_file:
        raise SpecError(
            "-e/--experiment_spec_file",
            f"ERROR: The subtask `{action}` requires the following argument: -e/--experiment_spec_file",
            "give the spec, or --config NAME for one that comes with the package",
        )
    path = os.path.expanduser(known.experiment_spec_file)  # leaves ~nobody as it is
    if not os.path.exists(path):
        raise SpecError(path, "ERROR: The indicated experiment spec file doesn't exist!", "check the path")
    return Path(path)
