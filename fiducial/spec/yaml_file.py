"""A YAML file as plain data. Nothing of it is executed, and no file takes long."""

from __future__ import annotations

import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fiducial.errors import SpecError

__all__ = ["MAX_BYTES", "read_yaml"]

MAX_BYTES = 2**19
MAX_DEPTH = 50
"""Brackets in brackets: more than the spec itself may have, and few enough for the reader's own recursion."""
MAX_VALUES = 30_000
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_MERGE = "tag:yaml.org,2002:merge"
_FLOAT = re.compile(
    r"""[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?
    |\d[\d_]*(:[0-5]?\d)+\.[\d_]*|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$""",
    re.VERBOSE | re.ASCII,
)


class _Loader(yaml.SafeLoader):
    """Plain values only; keys are text as it is written; ``1e-4`` is a number and a date is text, as in OmegaConf."""

    depth = values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self._count(1, self.peek_event())  # type: ignore[no-untyped-call]
        if self.depth > MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} deep", self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag not in _PLAIN | {_MERGE}:
            self._refuse(f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not read", node)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError):  # of PyYAML's own conversions
            self._refuse(f"a value that is no {node.tag.rpartition(':')[2]}", node)  # not shown: it may be a secret

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        own: dict[Hashable, Any] = {}
        merged: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key that is no text", key)
            if key.tag == _MERGE:
                for other in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                    merged |= self._mapping(other)
            elif key.value in own:
                self._refuse(f"found duplicate key {key.value[:80]!r}", key)
            else:
                own[key.value] = self.construct_object(value, deep=True)
        return merged | own

    def _mapping(self, node: Any) -> dict[Hashable, Any]:
        """What ``<<`` merges."""
        if not isinstance(node, yaml.MappingNode) or node in self.recursive_objects:
            self._refuse("<< without a mapping that ends before it", node)
        found: dict[Hashable, Any] = self.construct_object(node, deep=True)
        self._count(len(found), node)
        return found

    def _count(self, more: int, at: Any) -> None:
        self.values += more
        if self.values > MAX_VALUES:
            self._refuse(f"more than {MAX_VALUES} values: a spec has some hundreds", at)

    def _refuse(self, problem: str, at: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rows if not tag.endswith((":timestamp", ":float", ":value"))]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)


def read_yaml(path: Path) -> Any:
    """What the file holds; None for an empty one. Mappings and lists that it names twice are shared.

    Raises: SpecError with the line.
    """
    try:
        return yaml.load(_content(path), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or type(error).__name__
        if isinstance(error, yaml.reader.ReaderError):
            unprintable = error.encoding == "unicode"
            problem = f"the character U+{error.character:04X}" if unprintable else "it is not text in UTF-8"
        raise SpecError(where, f"not readable as YAML: {problem}", "mend the file") from None


def _content(path: Path) -> bytes:
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            found = "is a folder" if stat.S_ISDIR(kind.st_mode) else "is a pipe or a device, no file"
            raise SpecError(str(path), found, "name a YAML file")
        if kind.st_size > MAX_BYTES:
            found = f"has {kind.st_size / 2**20:.1f} MiB: too large for a spec"
            raise SpecError(str(path), found, f"a spec has some KiB, at most {MAX_BYTES >> 10}")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # files of /proc have no size
    except (OSError, ValueError) as error:
        found = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise SpecError(str(path), found, "check the path and its permissions") from None
