"""``${...}`` in a spec: ``results_dir`` as the action sees it, arithmetic, and mapped paths."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fiducial.errors import Problem
from fiducial.spec.path_map import map_path

Folder = Callable[[Mapping[str, Any]], str]
"""From the values of an action's section to the name of its folder below ``results_dir``."""

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


def resolve(
    tree: dict[str, Any], action: str | None, path_map: Mapping[str, str], folder: Folder | None = None
) -> tuple[dict[str, Any], str, list[str], list[Problem]]:
    """Rebase ``results_dir``, then replace interpolations and map paths; ``folder`` names the action's folder."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("eval", arithmetic, replace=True)
    problems: list[Problem] = []
    notices: list[str] = []

    def value_of(config: Any, key: str) -> Any:
        try:
            found = OmegaConf.select(config, key, throw_on_missing=True)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            problems.append(Problem(key, f"interpolation does not resolve: {reason}", "check the key it refers to"))
            return ""
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found

    original = OmegaConf.create(tree)
    root_dir = map_path(str(value_of(original, "results_dir") or ""), path_map)
    rebased = original
    own = tree.get(action) if action else None
    if action and isinstance(own, dict) and "results_dir" in own:
        target = map_path(str(value_of(original, f"{action}.results_dir") or ""), path_map)
        if not target and root_dir:
            target = str(Path(root_dir) / (folder(own) if folder else action))
        if target:
            tree = {**tree, "results_dir": target, action: {**own, "results_dir": target}}
            rebased = OmegaConf.create(tree)

    def resolved(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: resolved(v, f"{key}.{k}" if key else k) for k, v in value.items()}
        if isinstance(value, list):
            return [resolved(v, f"{key}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        if "${" not in value:
            return map_path(value, path_map)
        found = value_of(rebased, key)
        if isinstance(found, str) and "${results_dir}" in value:
            # TAO-compat: ${results_dir} is the action's folder; a checkpoint of the training run lies beside it
            other = value_of(original, key)
            if not Path(found).exists() and isinstance(other, str) and Path(map_path(other, path_map)).exists():
                notices.append(f"{key}: {found} does not exist; using {other} (results_dir before /{action} was added)")
                found = other
        return map_path(found, path_map) if isinstance(found, str) else found

    return resolved(tree, ""), root_dir, notices, problems
