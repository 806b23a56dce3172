"""``${...}`` in a plain tree, in OmegaConf's grammar: other keys, the environment, arithmetic.

OmegaConf itself would replace a reference anew wherever it stands, so that thirty lines can ask for gigabytes. Here
each key is replaced once, and what all of them become is bounded.
"""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from fiducial.errors import SpecError
from fiducial.redact import is_secret_name, keep_env_secret, keep_secret, redact_text
from fiducial.spec.bounded import Budget, bounded

__all__ = ["Path", "References", "arithmetic", "key_of"]

Path = tuple[str | int, ...]
"""The keys, and indices of lists, that lead to a value."""

_MAX_TEXT = 4096
_MAX_CHAIN = 20
_PARSING = 32
"""What parsing a character costs of the budget: it takes that much longer than copying one."""
_PARTS = re.compile(r"[^.\[\]]+")
_UNSET: Any = object()

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
        return value(ast.parse(str(text).strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def key_of(path: Path) -> str:
    """A path as users write it: ``a.b[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _first_line(error: Exception) -> str:
    return redact_text((str(error).splitlines() or [type(error).__name__])[0])[:200]


class References:
    """The values of a plain tree with their references replaced."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._found: dict[Path, Any] = {}
        self._failed: dict[Path, ValueError] = {}
        self._open: list[Path] = []
        self._secret: set[Path] = set()
        self._budget = Budget()

    def value(self, path: Path) -> Any:
        """The value at a path, None where there is none. Raises: ValueError, of one line, when it does not resolve."""
        found = self._raw(path)
        return None if found is _UNSET else self._resolved(found, path)

    def _raw(self, path: Path) -> Any:
        node: Any = self._tree
        for part in path:
            if isinstance(node, Mapping):
                node = node.get(str(part), _UNSET)
            elif isinstance(node, list) and str(part).isdecimal() and int(str(part)[:9]) < len(node):
                node = node[int(part)]
            else:
                return _UNSET
        return node

    def _resolved(self, node: Any, path: Path) -> Any:
        if isinstance(node, Mapping):
            return {key: self._resolved(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [self._resolved(value, (*path, index)) for index, value in enumerate(node)]
        if not isinstance(node, str) or "${" not in node:
            return node
        if path in self._failed:
            raise self._failed[path]
        if path not in self._found:
            try:
                self._found[path] = self._replaced(node, path)
            except ValueError as error:
                self._failed[path] = error
                raise
        return self._found[path]

    def _replaced(self, text: str, path: Path) -> Any:
        from omegaconf.errors import OmegaConfBaseException

        if path in self._open:
            raise ValueError(f"{key_of(path)} refers to itself")
        if len(self._open) >= _MAX_CHAIN or len(text) > _MAX_TEXT:
            raise ValueError(f"more than {_MAX_CHAIN} references in a row, or {_MAX_TEXT} characters")
        self._open.append(path)
        try:
            value = bounded(self._visit(text, path), key_of(path), path=key_of(path), budget=self._budget)
        except SpecError as error:
            raise ValueError(error.problems[0].found) from None
        except (OmegaConfBaseException, AssertionError, TypeError, RecursionError) as error:
            raise ValueError(f"it is not understood: {_first_line(error).partition(' expecting ')[0]}") from None
        finally:
            self._open.pop()
        if path in self._secret and isinstance(value, str):
            keep_secret(value)
        return value

    def _visit(self, text: str, path: Path, **rule: str) -> Any:
        from omegaconf.grammar_parser import parse
        from omegaconf.grammar_visitor import GrammarVisitor

        def resolver(name: str, args: tuple[Any, ...], args_str: tuple[str, ...]) -> Any:
            return self._call(name, args, path)

        visitor = GrammarVisitor(lambda key, memo: self._of_key(key, path), resolver, memo=None)
        self._budget.spend(_PARSING * len(text), key_of(path))
        try:
            parsed = parse(text, **rule)
        except Exception as error:  # the lexer raises just that where a bracket closes what none has opened
            raise ValueError(f"it is not understood: {_first_line(error).partition(' expecting ')[0]}") from None
        return visitor.visit(parsed)

    def _of_key(self, key: str, at: Path, default: Any = _UNSET) -> Any:
        dots = len(key) - len(key.lstrip("."))
        path = (*(at[:-dots] if dots else ()), *_PARTS.findall(key))
        found = self._raw(path)
        if found is _UNSET or (found is None and default is not _UNSET) or found == "???":
            if default is not _UNSET:
                return default
            raise ValueError(f"there is no {key_of(path)}" if found is _UNSET else f"{key_of(path)} is still ???")
        value = self._resolved(found, path)
        if any(is_secret_name(str(part)) for part in path) or any(known[: len(path)] == path for known in self._secret):
            self._secret.add(at)
        return value

    def _call(self, name: str, args: tuple[Any, ...], at: Path) -> Any:
        """What ``${name:args}`` gives. Nothing that a program registered with OmegaConf is called."""
        if name == "eval" and len(args) == 1:
            return arithmetic(args[0])
        if name == "oc.env" and len(args) in (1, 2):
            return self._environment(str(args[0]), args[1:], at)
        if name == "oc.select" and len(args) in (1, 2):
            return self._of_key(str(args[0]), at, *(args[1:] or (None,)))
        if name == "oc.decode" and len(args) == 1:
            text = args[0]
            return self._visit(text, at, parser_rule="singleElement", lexer_mode="VALUE_MODE") if text else None
        known = "eval, oc.env, oc.select, oc.decode"
        raise ValueError(f"no resolver {name!r} that takes {len(args)} value(s), only {known}")

    def _environment(self, name: str, default: tuple[Any, ...], at: Path) -> Any:
        value = os.environ.get(name)
        if value is not None:
            if keep_env_secret(name, value):
                self._secret.add(at)
            return value
        if not default:
            raise ValueError(f"the environment has no variable {name}")
        return None if default[0] is None else str(default[0])
