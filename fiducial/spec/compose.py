"""From a YAML file and overrides to one validated, frozen spec.

Lowest to highest: the defaults of the spec model, the YAML file, the overrides. Every problem is found before any is
reported, each as key, what was found, and the fix.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fiducial.errors import Problem, SpecError
from fiducial.spec.common import without_null_sections
from fiducial.spec.knob import MISSING, Section, item_section_of, meta_of, plain, section_of, union_members, walk
from fiducial.spec.overrides import apply_overrides
from fiducial.spec.redact import redact

SpecT = TypeVar("SpecT", bound=Section)
Folder = Callable[[Mapping[str, Any]], str]
"""From the values of an action's section to the name of its folder below ``results_dir``."""


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
        return to_yaml(redact(plain(self.spec)))


@dataclass
class Source:
    """YAML and overrides as one plain tree, not validated yet."""

    tree: dict[str, Any]
    given: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def results_dir(self, action: str, path_map: Mapping[str, str], folder: Folder | None = None) -> str | None:
        """Where the action would write, as far as the unvalidated tree tells; None when it does not."""
        own = self.tree.get(action)
        section = own if isinstance(own, dict) else {}
        candidates = (section.get("results_dir"), self.tree.get("results_dir"))
        for value, suffix in zip(candidates, ("", folder(section) if folder else action), strict=True):
            if isinstance(value, str) and value not in ("", MISSING) and "${" not in value:
                return str(Path(_map_path(value, path_map)) / suffix)
        return None


def to_yaml(tree: Any) -> str:
    """Block YAML of a plain tree, keys in their order."""
    import yaml

    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)
    return text


def read_source(
    kind: type[Section],
    spec: Path | Mapping[str, Any] | None,
    overrides: Sequence[str],
    *,
    unwrap: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Source:
    """Read a spec file (or take its content) and overrides, and rename the spellings that are accepted as aliases.

    ``unwrap`` finds the spec in a tree that another program's spec wraps.
    Raises: SpecError when the file cannot be read as one YAML mapping.
    """
    tree: dict[str, Any] = _read_yaml(spec) if isinstance(spec, Path) else plain(spec or {})
    tree = unwrap(tree) if unwrap else tree
    notices = list(_rename_aliases(kind, tree))  # before the overrides, which then win under either spelling
    problems = apply_overrides(tree, overrides, lambda key: _real_path(kind, key))
    notices.extend(_rename_aliases(kind, tree))  # those inside an override's {...}
    tree = without_null_sections(kind, tree)
    return Source(tree, set(_leaves(tree)), problems, notices)


def compose(
    kind: type[SpecT],
    source: Source,
    *,
    action: str | None = None,
    path_map: Mapping[str, str] | None = None,
    folder: Folder | None = None,
) -> Composed[SpecT]:
    """Validate a source as a spec of ``kind`` for one action.

    ``results_dir`` is rebased as TAO does it: ``<action>.results_dir`` if set, else ``<results_dir>/<action>``, and
    ``${results_dir}`` means the rebased one; ``folder`` may name another folder than the action's. ``path_map`` replaces leading folders (``{"/data": "./data"}``) in every
    string of the spec. Keys that are ``???`` count as not set and are listed in ``missing``.

    Raises: SpecError with every problem found.
    """
    tree = _merge(kind, _defaults(kind), source.tree)
    missing = tuple(sorted(_drop_missing(kind, tree)))
    problems = list(source.problems)
    tree, root_dir, notices, more = _resolve(tree, action, path_map or {}, folder)
    problems.extend(more)
    try:
        spec = kind.model_validate(tree)
    except ValidationError as error:
        raise SpecError.of([*problems, *_problems_of(kind, error)]) from None
    if problems:
        raise SpecError.of(problems)
    remarks, warnings = _remarks(spec, source.given)
    return Composed(
        spec=spec,
        root_dir=root_dir,
        given=frozenset(source.given),
        missing=missing,
        notices=(*source.notices, *notices, *remarks),
        warnings=warnings,
    )


def parse_path_map(entries: Sequence[str]) -> dict[str, str]:
    """``["/data=./data", …]`` as a mapping. Raises: SpecError for an entry that is not ``FROM=TO``."""
    mapped: dict[str, str] = {}
    for entry in entries:
        before, equals, after = entry.partition("=")
        if not (before and equals and after):
            raise SpecError("--map-path", repr(entry), "write FROM=TO, for example /data=./data")
        mapped[before.rstrip("/") or "/"] = after
    return mapped


def _read_yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SpecError(
            where, f"not readable as YAML: {getattr(error, 'problem', None) or error}", "mend the file"
        ) from None
    except OSError as error:
        raise SpecError(
            str(path), f"cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from None
    if not isinstance(loaded, dict):
        raise SpecError(str(path), "the top level is not a mapping of keys", "a spec starts with lines like 'train:'")
    tree: dict[str, Any] = plain(loaded)
    return tree


def _defaults(kind: type[Section]) -> dict[str, Any]:
    tree: dict[str, Any] = plain(kind())
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


def _resolve(
    tree: dict[str, Any], action: str | None, path_map: Mapping[str, str], folder: Folder | None
) -> tuple[dict[str, Any], str, list[str], list[Problem]]:
    """Rebase ``results_dir``, then replace interpolations and map paths."""
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
    root_dir = _map_path(str(value_of(original, "results_dir") or ""), path_map)
    rebased = original
    own = tree.get(action) if action else None
    if action and isinstance(own, dict) and "results_dir" in own:
        target = _map_path(str(value_of(original, f"{action}.results_dir") or ""), path_map)
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
            return _map_path(value, path_map)
        found = value_of(rebased, key)
        if isinstance(found, str) and "${results_dir}" in value:
            # TAO-compat: ${results_dir} is the action's folder; a checkpoint of the training run lies beside it
            other = value_of(original, key)
            if not Path(found).exists() and isinstance(other, str) and Path(_map_path(other, path_map)).exists():
                notices.append(f"{key}: {found} does not exist; using {other} (results_dir before /{action} was added)")
                found = other
        return _map_path(found, path_map) if isinstance(found, str) else found

    return resolved(tree, ""), root_dir, notices, problems


def _map_path(value: str, path_map: Mapping[str, str]) -> str:
    for before, after in sorted(path_map.items(), key=lambda item: -len(item[0])):
        if value == before:
            return after
        if value.startswith(before.rstrip("/") + "/"):
            return after.rstrip("/") + "/" + value[len(before.rstrip("/")) + 1 :]
    return value


def _problems_of(kind: type[Section], error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        path, info, parent = _locate(kind, item["loc"])
        found, context, code = item["input"], item.get("ctx", {}), item["type"]
        shown = f"found {found!r}" if not isinstance(found, (dict, list)) else f"found a {type(found).__name__}"
        bounds = {
            "greater_than_equal": ("ge", "at least"),
            "greater_than": ("gt", "more than"),
            "less_than_equal": ("le", "at most"),
            "less_than": ("lt", "less than"),
        }
        if code == "extra_forbidden":
            yield Problem(path, "unknown key", _suggest(kind, parent, path))
        elif code in bounds:
            name, words = bounds[code]
            yield Problem(path, shown, f"must be {words} {context[name]:g}")
        elif code == "literal_error":
            yield Problem(path, shown, f"use one of {context['expected']}{_near(str(found), context['expected'])}")
        elif code == "model_type":
            nested = section_of(info) if info else None
            keys = ", ".join(nested.model_fields) if nested else ""
            yield Problem(path, shown, f"this is a section with the keys {keys}")
        elif code == "value_error":
            yield Problem(path, shown, str(context.get("error", item["msg"])))
        else:
            yield Problem(path, shown, item["msg"][0].lower() + item["msg"][1:])


def _locate(kind: type[Section], loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None, type[Section] | None]:
    """The dotted key of a pydantic location, its field, and the section it stands in."""
    path = ""
    info: FieldInfo | None = None
    parent: type[Section] | None = kind
    section: type[Section] | None = kind
    for step, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
            section = item_section_of(info) if info else None
        elif section is not None and (part in section.model_fields or step == len(loc) - 1):
            path += f".{part}" if path else part
            parent, info = section, section.model_fields.get(part)
            section = section_of(info) if info else None
        elif info is not None and section is None and not any(mark in part for mark in "[(") and part not in _TAGS:
            path += f".{part}"
    return path, info, parent


_TAGS = frozenset({"str", "int", "float", "bool", "none"})
"""Names of union members that pydantic puts into an error's location."""


def _near(word: str, options: str) -> str:
    close = difflib.get_close_matches(word, [part.strip(" '\"") for part in options.replace(" or ", ",").split(",")], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _suggest(kind: type[Section], parent: type[Section] | None, path: str) -> str:
    section_path, _, leaf = path.rpartition(".")
    prefix = f"{section_path}." if section_path else ""
    here = list(parent.model_fields) if parent else []
    close = difflib.get_close_matches(leaf, here, 1, cutoff=0.7)
    elsewhere = [key.path for key in walk(kind) if key.path.rpartition(".")[2] == leaf]
    if close:
        return f"did you mean {prefix}{close[0]}?"
    if elsewhere:
        return f"this key stands at {' or '.join(elsewhere[:3])}"
    anywhere = difflib.get_close_matches(leaf, {key.path.rpartition(".")[2] for key in walk(kind)}, 1, cutoff=0.8)
    if anywhere:
        places = [key.path for key in walk(kind) if key.path.rpartition(".")[2] == anywhere[0]]
        return f"did you mean {' or '.join(places[:3])}?"
    return f"remove it; {section_path or 'the top level'} has the keys {', '.join(here)}"


def _remarks(spec: Section, given: set[str]) -> tuple[list[str], tuple[Problem, ...]]:
    notices: list[str] = []
    warnings: list[Problem] = []
    for key in walk(type(spec)):
        if key.path not in given or key.section is not None:
            continue
        value: Any = spec
        for part in key.path.split("."):
            value = getattr(value, part, None)
        if key.meta.ignored and value != key.default:
            notices.append(f"{key.path}: has no effect: {key.meta.ignored}")
        low, high = key.meta.usual or (None, None)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            if (low is not None and number < low) or (high is not None and number > high):
                span = f"{'' if low is None else f'{low:g}'} … {'' if high is None else f'{high:g}'}"
                warnings.append(Problem(key.path, f"found {number:g}", f"usual values are {span}", "warning"))
    return notices, tuple(warnings)
