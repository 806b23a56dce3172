"""``${...}`` in a spec: ``results_dir`` as the action sees it, arithmetic, and mapped paths."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fiducial.errors import Problem
from fiducial.spec.knob import MISSING
from fiducial.spec.path_map import map_path

_ARITHMETIC: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def arithmetic(text: str) -> int | float:
    """Evaluate numbers, ``+ - * / // %`` and brackets; nothing else. Raises: ValueError."""

    def value(node: ast.AST) -> int | float:
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            result: int | float = _ARITHMETIC[type(node.op)](value(node.left), value(node.right))
            return result
        if isinstance(node, ast.UnaryOp) and type(node.op) in _ARITHMETIC:
            signed: int | float = _ARITHMETIC[type(node.op)](value(node.operand))
            return signed
        raise ValueError(f"{text!r}: only numbers, + - * / // % and brackets are evaluated")

    try:
        return value(ast.parse(str(text), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(f"{text!r}: {error}") from None


NameFolder = Callable[[Mapping[str, Any]], str]
"""Names the results folder of an action after its section, which is not validated: any key may hold anything."""


def folder_of(tree: Mapping[str, Any], action: str, path_map: Mapping[str, str], name: NameFolder | None) -> str:
    """The folder of an action below ``results_dir``: its own name, or what ``name`` says of its section.

    In that section interpolations are replaced and paths mapped; what does not resolve stays as written, and what is
    still to be filled in is None.
    """
    if name is None:
        return action
    config = _config(tree)

    def told(text: str, key: str) -> Any:
        found: Any = text
        if "${" in text:
            with suppress(ValueError):
                found = _select(config, key)
        return map_path(found, path_map) if isinstance(found, str) else found

    own = tree.get(action)
    section = {key: value for key, value in own.items() if value != MISSING} if isinstance(own, dict) else {}
    return name(_with_texts(section, action, told))


def resolve(
    tree: dict[str, Any], action: str | None, path_map: Mapping[str, str], folder: NameFolder | None = None
) -> tuple[dict[str, Any], str, list[str], list[Problem]]:
    """Rebase ``results_dir`` to the action's, then replace interpolations and map paths.

    Returns: the tree, ``results_dir`` before it was rebased, notices, and what does not resolve.
    """
    problems: list[Problem] = []
    notices: list[str] = []

    def value_of(config: Any, key: str) -> Any:
        try:
            return _select(config, key)
        except ValueError as error:
            problems.append(Problem(key, f"interpolation does not resolve: {error}", "check the key it refers to"))
            return ""

    original = _config(tree)
    root_dir = map_path(str(value_of(original, "results_dir") or ""), path_map)
    rebased = original
    own = tree.get(action) if action else None
    if action and isinstance(own, dict) and "results_dir" in own:
        target = map_path(str(value_of(original, f"{action}.results_dir") or ""), path_map)
        if not target and root_dir:
            target = str(Path(root_dir) / folder_of(tree, action, path_map, folder))
        if target:
            tree = {**tree, "results_dir": target, action: {**own, "results_dir": target}}
            rebased = _config(tree)

    def resolved(text: str, key: str) -> Any:
        if "${" not in text:
            return map_path(text, path_map)
        found = value_of(rebased, key)
        if isinstance(found, str) and "${results_dir}" in text:
            # TAO-compat: ${results_dir} is the action's folder; a checkpoint of the training run lies beside it
            other = value_of(original, key)
            if not Path(found).exists() and isinstance(other, str) and Path(map_path(other, path_map)).exists():
                notices.append(f"{key}: {found} does not exist; using {other} (results_dir before /{action} was added)")
                found = other
        return map_path(found, path_map) if isinstance(found, str) else found

    return _with_texts(tree, "", resolved), root_dir, notices, problems


def _config(tree: Mapping[str, Any]) -> Any:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("eval", arithmetic, replace=True)
    return OmegaConf.create(dict(tree))


def _select(config: Any, key: str) -> Any:
    """The value at a key, interpolations replaced. Raises: ValueError, of one line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.select(config, key, throw_on_missing=True)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _with_texts(value: Any, key: str, change: Callable[[str, str], Any]) -> Any:
    """A copy of a plain tree in which every string is ``change(string, its dotted key)``."""
    if isinstance(value, dict):
        return {k: _with_texts(v, f"{key}.{k}" if key else k, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_texts(v, f"{key}[{i}]", change) for i, v in enumerate(value)]
    return change(value, key) if isinstance(value, str) else value
