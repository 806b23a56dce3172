"""``${...}`` in a spec: ``results_dir`` as the action sees it, arithmetic, and mapped paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from os.path import exists
from pathlib import Path
from typing import Any

from fiducial.errors import Problem
from fiducial.spec.knob import MISSING
from fiducial.spec.path_map import map_path
from fiducial.spec.references import Path as KeyPath
from fiducial.spec.references import References, key_of

NameFolder = Callable[[Mapping[str, Any]], str]
"""Names the results folder of an action after its section, which is not validated: any key may hold anything."""


def folder_of(tree: Mapping[str, Any], action: str, path_map: Mapping[str, str], name: NameFolder | None) -> str:
    """The folder of an action below ``results_dir``: its own name, or what ``name`` says of its section.

    In that section interpolations are replaced and paths mapped; what does not resolve stays as written, and what is
    still to be filled in is None.
    """
    if name is None:
        return action
    references = References(tree)

    def told(text: str, path: KeyPath) -> Any:
        found: Any = text
        with suppress(ValueError):
            found = references.value(path)
        return map_path(found, path_map) if isinstance(found, str) else found

    own = tree.get(action)
    section = {key: value for key, value in own.items() if value != MISSING} if isinstance(own, dict) else {}
    return name(_with_texts(section, (action,), told))


def resolve(
    tree: dict[str, Any], action: str | None, path_map: Mapping[str, str], folder: NameFolder | None = None
) -> tuple[dict[str, Any], str, list[str], list[Problem]]:
    """Rebase ``results_dir`` to the action's, then replace interpolations and map paths.

    Returns: the tree, ``results_dir`` before it was rebased, notices, and what does not resolve.
    """
    problems: list[Problem] = []
    notices: list[str] = []

    def value_of(references: References, path: KeyPath) -> Any:
        try:
            return references.value(path)
        except ValueError as error:
            where = key_of(path)
            problems.append(Problem(where, f"interpolation does not resolve: {error}", "check the key it refers to"))
            return ""

    def folder_at(path: KeyPath) -> str:
        found = value_of(original, path)
        is_name = isinstance(found, (str, int, float)) and not isinstance(found, bool)
        return map_path(str(found), path_map) if is_name else ""  # anything else is for validation to refuse

    original = References(tree)
    root_dir = folder_at(("results_dir",))
    rebased = original
    own = tree.get(action) if action else None
    if action and isinstance(own, dict) and "results_dir" in own:
        target = folder_at((action, "results_dir"))
        if not target and root_dir:
            target = str(Path(root_dir) / folder_of(tree, action, path_map, folder))
        if target:
            tree = {**tree, "results_dir": target, action: {**own, "results_dir": target}}
            rebased = References(tree)

    def resolved(text: str, path: KeyPath) -> Any:
        if "${" not in text:
            return map_path(text, path_map)
        found = value_of(rebased, path)
        if isinstance(found, str) and "${results_dir}" in text:
            # TAO-compat: ${results_dir} is the action's folder; a checkpoint of the training run lies beside it
            other = value_of(original, path)
            # os.path.exists also takes names that no file can have
            if not exists(found) and isinstance(other, str) and exists(map_path(other, path_map)):
                key = key_of(path)
                notices.append(f"{key}: {found} does not exist; using {other} (results_dir before /{action} was added)")
                found = other
        return map_path(found, path_map) if isinstance(found, str) else found

    return _with_texts(tree, (), resolved), root_dir, notices, list(dict.fromkeys(problems))


def _with_texts(value: Any, path: KeyPath, change: Callable[[str, KeyPath], Any]) -> Any:
    """A copy of a plain tree in which every string is ``change(string, its path)``."""
    if isinstance(value, dict):
        return {k: _with_texts(v, (*path, k), change) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_texts(v, (*path, i), change) for i, v in enumerate(value)]
    return change(value, path) if isinstance(value, str) else value
