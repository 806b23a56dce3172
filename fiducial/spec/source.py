"""A spec file and overrides as one plain tree under the keys' own names, not validated yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from fiducial.errors import Problem, SpecError
from fiducial.redact import keep_secrets_of
from fiducial.spec.bounded import bounded
from fiducial.spec.common import without_null_sections
from fiducial.spec.interpolation import NameFolder, folder_of
from fiducial.spec.items import fold_items, set_item
from fiducial.spec.knob import MISSING, Section, meta_of, section_of
from fiducial.spec.overrides import apply_overrides
from fiducial.spec.path_map import map_path
from fiducial.spec.shorthands import Shorthands, expand, task_of
from fiducial.spec.yaml_file import read_yaml

_MAX_SECRETS = 500
"""Each is looked for in every line that is said."""


@dataclass
class Source:
    """YAML and overrides as one plain tree, not validated yet."""

    tree: dict[str, Any]
    given: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def results_dir(self, action: str, path_map: Mapping[str, str], folder: NameFolder | None = None) -> str | None:
        """Where the action would write, as far as the unvalidated tree tells; None when it does not.

        ``folder`` names the action's folder, as for :func:`~fiducial.spec.compose.compose`.
        """
        own = self.tree.get(action)
        target, root = (part.get("results_dir") if isinstance(part, dict) else None for part in (own, self.tree))
        if _is_told(target):
            return str(Path(map_path(target, path_map)))
        if _is_told(root):
            return str(Path(map_path(root, path_map)) / folder_of(self.tree, action, path_map, folder))
        return None


def _is_told(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value not in ("", MISSING) and "${" not in value


def read_source(
    kind: type[Section],
    spec: Path | Mapping[str, Any] | None,
    overrides: Sequence[str],
    unwrap: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    shorthands: Callable[[str], Shorthands] | None = None,
) -> Source:
    """Read a spec file (or take its content) and overrides.

    Aliases get their key's name, keys of list items go into their lists.

    ``unwrap`` is given the file's tree, exactly as written, and returns the spec in it; ``shorthands`` the name of the
    spec's task (empty where it has none), and returns the short names that overrides may have.

    Raises: SpecError when the file cannot be read as one YAML mapping, or holds more than a spec can.
    """
    tree = _tree_of(spec)
    _keep_secrets(tree)  # before anything can be said about it
    if spec and unwrap:
        tree = unwrap(tree)
    notices = list(_rename_aliases(kind, tree))  # before the overrides, which then win under either spelling
    problems = list(fold_items(kind, tree))
    if shorthands:
        expanded = list(expand(overrides, shorthands(task_of(overrides, tree))))
        overrides = [text for text, _ in expanded]
        notices += [notice for _, notice in expanded if notice]
    problems += apply_overrides(tree, overrides, rename=partial(_real_path, kind), set_item=partial(set_item, kind))
    _keep_secrets(tree)
    notices.extend(_rename_aliases(kind, tree))  # those inside an override's {...}
    tree = without_null_sections(kind, tree)
    return Source(tree, set(_leaves(tree)), problems, notices)


def _keep_secrets(tree: dict[str, Any]) -> None:
    count = keep_secrets_of(tree)
    if count > _MAX_SECRETS:
        fix = "a spec has one or two: leave out what no key needs"
        raise SpecError("spec", f"{count} passwords, keys and signed URLs", fix)


def _tree_of(spec: Path | Mapping[str, Any] | None) -> dict[str, Any]:
    where = str(spec) if isinstance(spec, Path) else "spec"
    loaded = read_yaml(spec) if isinstance(spec, Path) else spec
    if loaded is None:  # an empty file
        return {}
    if not isinstance(loaded, Mapping):
        raise SpecError(where, "the top level is not a mapping of keys", "a spec starts with lines like 'train:'")
    tree: dict[str, Any] = bounded(loaded, where)
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def _rename_aliases(kind: type[Section], tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, info in kind.model_fields.items():
        for alias in meta_of(info).aliases:
            if alias not in tree:
                continue
            value = tree.pop(alias)
            if name in tree and tree[name] != value:
                yield f"{prefix}{alias}: ignored, because {prefix}{name} is set too"
            else:
                tree[name] = value
                yield f"{prefix}{alias}: read as {prefix}{name}"
        nested = section_of(info)
        if nested and isinstance(tree.get(name), dict):
            yield from _rename_aliases(nested, tree[name], f"{prefix}{name}.")


def _real_path(kind: type[Section], path: str) -> str:
    """A dotted key with every alias in it replaced by the key's own name."""
    section: type[Section] | None = kind
    parts = path.split(".")
    for place, part in enumerate(parts):
        fields = section.model_fields if section else {}
        parts[place] = next((name for name, info in fields.items() if part in meta_of(info).aliases), part)
        section = section_of(fields[parts[place]]) if parts[place] in fields else None
    return ".".join(parts)
