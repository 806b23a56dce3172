"""The command line: arguments to (task, action, spec), an exit code and a last line.

``main`` serves every network. It stays light: torch is imported by the action, after the spec has been validated.
Exit codes: 0 success, 1 every failure, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fiducial.errors import SHOWN, SpecError, UserError
from fiducial.run.console import FAIL, LOGGER, PASS, last_line, set_up_console
from fiducial.run.ranks import global_rank, leave_group
from fiducial.spec.compose import Composed, Source, compose, parse_path_map, read_source
from fiducial.spec.knob import Section, walk
from fiducial.task import Task, dispatch, load

PATH_MAP_VARIABLE = "FIDUCIAL_MAP_PATH"
_ACTIONS = {
    "train": "fiducial.actions.train:train",
    "evaluate": "fiducial.actions.evaluate:evaluate",
    "inference": "fiducial.actions.evaluate:inference",
    "export": "fiducial.actions.export:export",
}
_HELP = {
    "train": "train a model",
    "evaluate": "measure a checkpoint or an exported model on the test set",
    "inference": "score images without needing labels",
    "export": "write a checkpoint as ONNX",
    "check": "look for problems in a spec and its dataset, without a model",
    "default_specs": "print every key with its default, as YAML",
}
_LATER = ("quantize", "gen_trt_engine")
_ABSENT = {"prune": "pruned", "retrain": "pruned and retrained"}


@dataclass(frozen=True)
class Command:
    """What the user asked for."""

    action: str
    checked: str | None = None
    spec_file: Path | None = None
    spec_only: bool = False
    overrides: tuple[str, ...] = ()
    path_map: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The action whose spec is meant: the checked one for ``check``."""
        return self.checked or self.action


def main(tasks: Sequence[Task], argv: Sequence[str] | None = None, *, prog: str) -> int:
    """Run one command line; returns the exit code and prints the last line (argument errors raise SystemExit(2))."""
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
        LOGGER.error("%s", "".join(traceback.format_exception(error)).rstrip())
        for advice in _advice(error):
            LOGGER.error("%s", advice)
        code = 1
    last_line(PASS if code == 0 else FAIL)
    return code


def _advice(error: Exception) -> Iterator[str]:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text:
        yield (
            "out of memory: lower batch_size, set train.precision=bf16-mixed, "
            "model.backbone.activation_checkpointing=true, or freeze the backbone"
        )
    if "bus error" in text or "shared memory" in text or "/dev/shm" in text:
        yield "out of shared memory: enlarge /dev/shm (docker run --shm-size=8g) or lower the number of workers"


def _execute(tasks: Sequence[Task], command: Command) -> int:
    kind = tasks[0].spec_model()
    if command.action == "default_specs":
        return _default_specs(kind, command)
    source = read_source(kind, command.spec_file, command.overrides)
    try:
        composed = compose(kind, source, action=command.target, path_map=command.path_map)
        task = _task_of(tasks, composed, source)
    except SpecError as error:
        _record_failure(source, command, error)
        raise
    for notice in composed.notices:
        LOGGER.info("%s", notice)
    for warning in composed.warnings[:SHOWN]:
        LOGGER.warning("%s", warning)
    if command.action == "check":
        code: int = load("fiducial.actions.check:check")(task, command.target, composed, spec_only=command.spec_only)
        return code
    from fiducial.run.run import open_run

    LOGGER.info("spec after merging:\n%s", composed.yaml.rstrip())
    with open_run(command.action, task.title, composed) as run:
        load(_ACTIONS[command.action])(task, run)
    leave_group()
    return 0


def _task_of(tasks: Sequence[Task], composed: Composed[Section], source: Source) -> Task:
    name = str(getattr(composed.spec, "task", tasks[0].name))
    try:
        task = dispatch(tasks, name)
    except KeyError:
        known = ", ".join(task.name for task in tasks)
        raise SpecError("task", f"{name!r} is not available in this version", f"set task to one of: {known}") from None
    if "task" not in source.given and "task" in type(composed.spec).model_fields:
        LOGGER.warning("task is not set in the spec: using its default, %s", name)
    return task


def _record_failure(source: Source, command: Command, error: SpecError) -> None:
    """Leave the FAILURE record of a spec that never became a run, where the raw YAML says where to."""
    from fiducial.run.run import failure_message
    from fiducial.run.status import StatusWriter

    folder = source.results_dir(command.target, command.path_map)
    if command.action == "check" or folder is None or global_rank() != 0:
        return
    mapped = Path(folder).expanduser()
    try:
        mapped.mkdir(parents=True, exist_ok=True)
        StatusWriter(mapped).write(failure_message(command.target.capitalize(), error), "FAILURE")
    except OSError as problem:
        LOGGER.warning("no status.json written: %s", problem)


def _default_specs(kind: type[Section], command: Command) -> int:
    """Print the run-time defaults, or write them to ``results_dir=DIR`` as TAO does."""
    from fiducial.spec.compose import to_yaml
    from fiducial.spec.knob import plain

    text = to_yaml(plain(kind()))
    target = read_source(kind, None, command.overrides).tree.get("results_dir")
    if target:
        path = Path(str(target)).expanduser() / "experiment.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            LOGGER.warning("overwriting %s", path)
        path.write_text(text, encoding="utf-8")
        LOGGER.info("defaults written to %s", path)
    else:
        print(text, end="")
    return 0


def _parse(tasks: Sequence[Task], argv: list[str], prog: str) -> Command:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{tasks[0].title}: tasks {', '.join(task.name for task in tasks)}.",
        epilog="Every spec key can be overridden: train.num_epochs=5 'train.gpu_ids=[0,1]' (Hydra's grammar).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions = [action for action in _ACTIONS if any(action in task.actions for task in tasks)]
    for action in (*actions, "check", "default_specs"):
        _add_command(commands, action, _HELP[action], tasks, actions)
    aliases = {f"{task.name}_{action}": (task, action) for task in tasks for action in actions}
    for alias, (task, action) in aliases.items():
        _add_command(commands, alias, f"{action} with task={task.name}", tasks, actions)
    if argv and argv[0] in _ABSENT:
        raise SpecError(argv[0], f"{tasks[0].title} models are not {_ABSENT[argv[0]]}", f"use: {', '.join(actions)}")
    if argv and argv[0] in _LATER and argv[0] not in actions:
        raise SpecError(argv[0], "is not available in this version", f"use: {', '.join(actions)}")
    known, unknown = parser.parse_known_args(argv)
    flags = [item for item in unknown if item.startswith("-")]
    if flags:
        parser.error(f"unknown option {flags[0]}; spec keys are set as key=value, for example train.num_gpus=2")
    action, overrides = known.action, tuple(unknown)
    if action in aliases:
        task, action = aliases[action]
        overrides = (f"task={task.name}", *overrides)
    spec_file = _spec_file(known, action)
    entries = [*os.environ.get(PATH_MAP_VARIABLE, "").split(","), *getattr(known, "map_path", [])]
    return Command(
        action=action,
        checked=getattr(known, "checked", None),
        spec_file=spec_file,
        spec_only=getattr(known, "spec_only", False),
        overrides=overrides,
        path_map=parse_path_map([entry for entry in entries if entry]),
    )


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help: str,
    tasks: Sequence[Task],
    actions: Sequence[str],
) -> None:
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        allow_abbrev=False,
        formatter_class=_KeyHelp,
    )
    command.usage = f"{command.prog} [options] [key=value ...]"
    if name == "default_specs":
        return
    if name == "check":
        command.add_argument("checked", choices=actions, help="the action that the spec is for")
        command.add_argument("--spec-only", action="store_true", help="look at the spec alone and print it resolved")
    command.add_argument("-e", "--experiment_spec_file", metavar="SPEC.yaml", help="the spec")
    command.add_argument("--config", metavar="NAME", help="a spec that comes with the package, instead of -e")
    command.add_argument(
        "--map-path",
        action="append",
        default=[],
        metavar="FROM=TO",
        help=f"read paths of the spec below FROM as TO: /data=./data (also {PATH_MAP_VARIABLE}, comma-separated)",
    )
    _KeyHelp.spec = tasks[0].spec


class _KeyHelp(argparse.HelpFormatter):
    """Adds the spec's most used keys below the options, read from their declarations only when help is asked for."""

    spec = ""

    def format_help(self) -> str:
        text = super().format_help()
        if " default_specs" in text.splitlines()[0] or not text.startswith("usage"):
            return text
        lines = ["", "spec keys set most often (all of them: default_specs):"]
        for key in walk(load(self.spec)):
            if key.meta.popular and key.section is None:
                default = "" if key.default in (None, "") else f" [{key.default}]"
                lines.append(f"  {key.path}{default}\n      {key.meta.help.split('. ')[0].rstrip('.')}")
        return text + "\n".join(lines) + "\n"


def _spec_file(known: argparse.Namespace, action: str) -> Path | None:
    if action == "default_specs":
        return None
    if known.config:
        from fiducial.resources import resource_dir

        folder = resource_dir("configs")
        path = folder / f"{known.config.removesuffix('.yaml')}.yaml"
        if not path.is_file():
            names = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
            raise SpecError("--config", f"no curated spec {known.config!r}", f"use one of: {', '.join(names)}")
        return path
    if not known.experiment_spec_file:
        raise SpecError(
            "-e/--experiment_spec_file",
            f"ERROR: The subtask `{action}` requires the following argument: -e/--experiment_spec_file",
            "give the spec, or --config NAME for one that comes with the package",
        )
    path = Path(known.experiment_spec_file).expanduser()
    if not path.is_file():
        raise SpecError(str(path), "ERROR: The indicated experiment spec file doesn't exist!", "check the path")
    return path
