"""From a YAML file and overrides to one validated, frozen spec.

Lowest to highest: the defaults of the spec model, the YAML file, the overrides. Every problem is found before any is
reported, each as key, what was found, and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fiducial.errors import Problem, SpecError
from fiducial.redact import redact
from fiducial.spec.interpolation import NameFolder, resolve
from fiducial.spec.knob import MISSING, Section, plain, section_of
from fiducial.spec.messages import problems_of
from fiducial.spec.path_map import parse_path_map
from fiducial.spec.remarks import remarks
from fiducial.spec.source import Source, read_source
from fiducial.spec.value_types import union_members

__all__ = ["Composed", "Source", "changed", "compose", "parse_path_map", "read_source", "to_yaml"]

SpecT = TypeVar("SpecT", bound=Section)


@dataclass(frozen=True)
class Composed(Generic[SpecT]):
    """A validated spec, and what there is to say about how it came to be."""

    spec: SpecT
    root_dir: str
    """The ``results_dir`` of the whole experiment, before it was rebased to the action's."""
    given: frozenset[str]
    """The keys that the YAML or an override set."""
    missing: tuple[str, ...]
    """Keys still ``???``: to be filled in before an action that needs them."""
    notices: tuple[str, ...]
    warnings: tuple[Problem, ...]

    @property
    def yaml(self) -> str:
        """The resolved spec as YAML, secrets starred out."""
        return to_yaml(plain(self.spec))

    @property
    def changes(self) -> str:
        """As :attr:`yaml`, what differs from the defaults alone."""
        return to_yaml(changed(type(self.spec), plain(self.spec)))


def changed(kind: type[Section], tree: dict[str, Any]) -> dict[str, Any]:
    """What a plain spec of a kind has other than the defaults."""
    return _difference(tree, _defaults(kind))


def to_yaml(tree: Any) -> str:
    """Block YAML of a plain tree, keys in their order, secrets starred out."""
    import yaml

    text: str = yaml.safe_dump(redact(tree), sort_keys=False, allow_unicode=True, width=1000)
    return text


def compose(
    kind: type[SpecT],
    source: Source,
    *,
    action: str | None = None,
    path_map: Mapping[str, str] | None = None,
    folder: NameFolder | None = None,
) -> Composed[SpecT]:
    """Validate a source as a spec of ``kind`` for one action.

    ``results_dir`` is rebased as TAO does it: ``<action>.results_dir`` if set, else ``<results_dir>/<action>``, and
    ``${results_dir}`` means the rebased one. ``path_map`` replaces leading folders (``{"/data": "./data"}``) in every
    string of the spec. ``folder`` is given the action's section, interpolations replaced but not validated, and names
    the folder to use in place of ``<action>``. Keys that are ``???`` count as not set and are listed in ``missing``.

    Raises: SpecError with every problem found.
    """
    tree = _merge(kind, _defaults(kind), source.tree)
    missing = tuple(sorted(_drop_missing(kind, tree)))
    problems = list(source.problems)
    tree, root_dir, notices, more = resolve(tree, action, path_map or {}, folder)
    problems.extend(more)
    try:
        spec = kind.model_validate(tree)
    except ValidationError as error:
        known = {problem.where for problem in problems}  # of what does not resolve there is no value to validate
        raise SpecError.of([*problems, *(p for p in problems_of(kind, error) if p.where not in known)]) from None
    if problems:
        raise SpecError.of(problems)
    said, warnings = remarks(spec, source.given)
    return Composed(
        spec=spec,
        root_dir=root_dir,
        given=frozenset(source.given),
        missing=missing,
        notices=(*source.notices, *notices, *said),
        warnings=warnings,
    )


def _difference(tree: dict[str, Any], base: Any) -> dict[str, Any]:
    """The values of ``tree`` that ``base`` has not; keys of sections, lists as a whole."""
    changed: dict[str, Any] = {}
    for key, value in tree.items():
        before = base.get(key) if isinstance(base, dict) else None
        if isinstance(value, dict) and isinstance(before, dict):
            value = _difference(value, before)
            if value:
                changed[key] = value
        elif value != before:
            changed[key] = value
    return changed


def _defaults(kind: type[Section]) -> dict[str, Any]:
    tree: dict[str, Any] = plain(kind())
    return tree


def _blank_means_unset(info: FieldInfo) -> bool:
    # "" in a generated template stands for "not set", also where the key is no string
    members = union_members(info.annotation)
    return not (str in members or members == (Any,) or get_origin(members[0]) is Literal)


def _merge(kind: type[Section] | None, base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on it: mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        info = kind.model_fields.get(key) if kind else None
        nested = section_of(info) if info else None
        if info and value == "" and _blank_means_unset(info):
            continue
        if isinstance(value, dict) and (nested or isinstance(merged.get(key), dict)):
            merged[key] = _merge(nested, merged.get(key) or {}, value)
        else:
            merged[key] = value
    return merged


def _drop_missing(kind: type[Section], tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    defaults = _defaults(kind)
    for key in list(tree):
        nested = section_of(kind.model_fields[key]) if key in kind.model_fields else None
        if tree[key] == MISSING:
            yield f"{prefix}{key}"
            if key in defaults:
                tree[key] = defaults[key]
            else:
                del tree[key]
        elif nested and isinstance(tree[key], dict):
            yield from _drop_missing(nested, tree[key], f"{prefix}{key}.")
