"""What users may rely on, as text: a change of ``public_surface.txt`` is a change of the interface.

``python tests/test_public_surface.py`` writes it anew.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INVENTORY = ROOT / "tests" / "public_surface.txt"
OURS = ("changenet", "fiducial", "mal", "mlrecog")


class Text:
    """An annotation that prints without quotes."""

    def __init__(self, annotation: Any) -> None:
        self.text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self.text


def signature(function: Callable[..., Any]) -> str:
    found = inspect.signature(function)
    empty = inspect.Signature.empty
    parameters = [
        p if p.annotation is empty else p.replace(annotation=Text(p.annotation)) for p in found.parameters.values()
    ]
    says_nothing = inspect.isclass(function) or found.return_annotation is empty
    returned = empty if says_nothing else Text(found.return_annotation)
    return str(found.replace(parameters=parameters, return_annotation=returned))


def packages() -> Iterator[str]:
    for name in OURS:
        yield name
        for found in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if found.ispkg:
                yield found.name


def own(kind: type) -> list[type]:
    """The class and its bases, as far as they are ours."""
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] in OURS]


def instance_attributes(kind: type) -> Iterator[str]:
    """Names that ``__init__`` gives an instance."""
    if "__init__" not in vars(kind) or hasattr(kind, "__dataclass_fields__"):
        return
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def members(kind: type) -> Iterator[str]:
    """Public members, as they follow the class's name."""
    for base in own(kind):
        fields = inspect.get_annotations(base)
        yield from (f"{name}: {Text(annotation)}" for name, annotation in fields.items())
        for name, value in vars(base).items():
            if isinstance(value, (property, cached_property)):
                getter = value.fget if isinstance(value, property) else value.func
                returned = inspect.get_annotations(getter).get("return", "?")
                yield f"{name}: {Text(returned)}"
            elif inspect.isroutine(value) or isinstance(value, (staticmethod, classmethod)):
                yield name + signature(getattr(kind, name))
            elif name not in fields:
                yield f"{name}: {type(value).__name__}"
        yield from (name for name in instance_attributes(base) if name not in fields)


def lines_of(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        made_by_us = any("__init__" in vars(base) or "__new__" in vars(base) for base in own(value))
        yield name + (signature(value) if made_by_us else "")
        yield from sorted({f"{name}.{member}" for member in members(value) if not member.startswith("_")})
    elif inspect.isroutine(value):
        yield name + signature(value)
    elif type(value).__module__ == "typing":  # an alias
        yield f"{name} = {value!r}"
    else:
        yield f"{name}: {type(value).__name__}"


def surface() -> str:
    lines = []
    for package in packages():
        module = importlib.import_module(package)
        for name in sorted(getattr(module, "__all__", ())):
            lines += lines_of(f"{package}.{name}", getattr(module, name))
    return "".join(f"{line}\n" for line in lines)


def test_the_public_surface_is_the_stored_one():
    assert surface() == INVENTORY.read_text("utf-8"), "if the change is wanted: python tests/test_public_surface.py"


def test_the_text_is_the_same_on_every_machine():
    text = surface()
    assert " at 0x" not in text
    assert str(ROOT) not in text


class Example:
    """For :func:`members`."""

    size: int = 3
    LIMIT = 4.5

    def __init__(self, name: str) -> None:
        self.name, self._hidden = name, 0

    def call(self, x: int, *, y: str = "a") -> list[str]:
        return [y] * x

    @staticmethod
    def make(x: int) -> Example:
        return Example(str(x))

    @property
    def double(self) -> str:
        return 2 * self.name


def test_members(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "OURS", (__name__.partition(".")[0],))
    assert list(lines_of("m.Example", Example)) == [
        "m.Example(name: str)",
        "m.Example.LIMIT: float",
        "m.Example.call(self, x: int, *, y: str = 'a') -> list[str]",
        "m.Example.double: str",
        "m.Example.make(x: int) -> Example",
        "m.Example.name",
        "m.Example.size: int",
    ]


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder, which has one named changenet
    INVENTORY.write_text(surface(), "utf-8")
