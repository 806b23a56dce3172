"""``schema`` and ``default_specs``: what the knobs of a network say, printed or written. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from fiducial.actions.perform import read_spec
from fiducial.run.console import LOGGER
from fiducial.run.run import writable_folder, write_spec
from fiducial.task import Task

__all__ = ["default_specs", "schema"]


def schema(tasks: Sequence[Task[Any]], overrides: Sequence[str], path_map: Mapping[str, str]) -> None:
    """Write schemas, templates, card and key reference into ``results_dir=DIR``; without it print the strict schema.

    Raises: SpecError or CheckpointError when they cannot be written.
    """
    from fiducial.checkpoints.atomic import save_atomically
    from fiducial.schemas.artefacts import STRICT, artefacts

    target = _target(tasks, overrides, path_map, "schema writes what the keys are")
    files = artefacts(tasks)
    if not target:
        print(files[STRICT], end="")
        return
    folder = writable_folder(target, "results_dir", "set results_dir=./schemas")
    for name, text in files.items():
        save_atomically(folder / name, partial(_write, text.encode()))
    LOGGER.info("%d files written to %s", len(files), folder)


def default_specs(tasks: Sequence[Task[Any]], overrides: Sequence[str], path_map: Mapping[str, str]) -> None:
    """Print the run-time defaults with what they mean, or write them to ``results_dir=DIR`` as TAO does.

    Raises: SpecError when they cannot be written.
    """
    from fiducial.schemas.yaml_text import explained_yaml
    from fiducial.spec.knob import plain

    kind = tasks[0].spec_model()
    text = explained_yaml(kind, plain(kind())).lstrip("\n")
    mine = [text for text in overrides if not text.startswith("module_name=")]
    if len(mine) < len(overrides):
        LOGGER.info("module_name: ignored, the command says which network; TAO's own asks for it")
    target = _target(tasks, mine, path_map, "default_specs shows the defaults")
    if not target:
        print(text, end="")
        return
    folder = writable_folder(target, "results_dir", "set results_dir=./results")
    if (folder / "experiment.yaml").exists():
        LOGGER.warning("overwriting %s", folder / "experiment.yaml")
    LOGGER.info("defaults written to %s", write_spec(folder, text))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _target(tasks: Sequence[Task[Any]], overrides: Sequence[str], path_map: Mapping[str, str], does: str) -> str:
    """The ``results_dir`` that overrides name; empty: none. Raises: SpecError for what is wrong with them."""
    from fiducial.spec.compose import compose

    source = read_spec(tasks, None, overrides)
    target = compose(tasks[0].spec_model(), source, path_map=path_map).spec.results_dir
    if ignored := sorted(key for key in source.given if key != "results_dir"):
        LOGGER.warning("%s: ignored; %s", ", ".join(ignored), does)
    return str(target)
