"""One declaration per spec key.

A *knob* is a pydantic field that also carries what the command line, the JSON schema, the template, the
documentation and the hyper-parameter search need to know about the key. :func:`knob` is the only way to declare one,
and :class:`Section` the only base of a group of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

MISSING = "???"
"""OmegaConf's spelling of "to be filled in"."""

_UNSET: Any = object()


@dataclass(frozen=True)
class KnobMeta:
    """What is known about a key besides its type, default and hard bounds (see :func:`knob`)."""

    help: str
    template: Any = _UNSET
    usual: tuple[float | None, float | None] | None = None
    options: tuple[Any, ...] | None = None
    aliases: tuple[str, ...] = ()
    automl: bool | None = None
    math_cond: str | None = None
    popular: bool = False
    required: bool = False
    title: str = ""
    schema: bool = True
    ignored: str = ""

    @property
    def has_template(self) -> bool:
        """Whether generated templates show another value than the run-time default."""
        return self.template is not _UNSET


class Section(BaseModel):
    """A group of spec keys. Frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=(), validate_default=False
    )


def knob(
    default: Any,
    help: str,
    *,
    template: Any = _UNSET,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    usual: tuple[float | None, float | None] | None = None,
    options: tuple[Any, ...] | None = None,
    aliases: tuple[str, ...] = (),
    automl: bool | None = None,
    math_cond: str | None = None,
    popular: bool = False,
    required: bool = False,
    title: str = "",
    schema: bool = True,
    ignored: str = "",
) -> Any:
    """Declare one spec key.

    Args:
        default: What the code uses when the key is absent; ``list``, ``dict`` and Section values are copied per spec.
        help: One or two sentences; shown by ``--help``, in the schema and in the documentation.
        template: What generated templates and schemas show, where it differs from ``default``.
        ge, gt, le, lt: Hard bounds. Outside them the run cannot work: an error.
        usual: ``(low, high)``, either may be None. Outside it the run works but is odd: a warning.
        options: Values that are documented, for keys whose type does not say it (a type that does is a ``Literal``).
        aliases: Other spellings found in documents; accepted with a notice.
        automl: True: searched by default. False: never searched. None: searched only when asked for.
        math_cond: Condition of the search (``"> 0.0"``, ``"/ 32"``).
        popular: Shown first.
        required: The action cannot run without it.
        title: Short name for user interfaces.
        schema: False keeps the key out of generated schemas (accepted, not advertised).
        ignored: Why the key has no effect; setting it prints one line that says so.
    """
    meta = KnobMeta(
        help=help,
        template=template,
        usual=usual,
        options=options,
        aliases=aliases,
        automl=automl,
        math_cond=math_cond,
        popular=popular,
        required=required,
        title=title,
        schema=schema,
        ignored=ignored,
    )
    bounds: dict[str, Any] = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    if isinstance(default, (list, dict)):
        made: Any = Field(default_factory=lambda: type(default)(default), description=help, **bounds)
    else:
        made = Field(default=default, description=help, **bounds)
    made.metadata.append(meta)
    return made


def section(kind: type[Section], help: str, **meta: Any) -> Any:
    """Declare a nested section whose keys all have their defaults."""
    made: Any = Field(default_factory=kind, description=help)
    made.metadata.append(KnobMeta(help=help, **meta))
    return made


def meta_of(info: FieldInfo) -> KnobMeta:
    """The knob's metadata of a field. Raises: TypeError when the field was not made by :func:`knob`."""
    for item in info.metadata:
        if isinstance(item, KnobMeta):
            return item
    raise TypeError(f"a spec key must be declared with knob() or section(), found {info!r}")


def section_of(info: FieldInfo) -> type[Section] | None:
    """The Section class a field holds (also when optional), or None for a plain value; a list is a plain value."""
    return _section_in(union_members(info.annotation))


def item_section_of(info: FieldInfo) -> type[Section] | None:
    """The Section class of the items of a field that is a list of sections; else None."""
    lists = [kind for kind in union_members(info.annotation) if get_origin(kind) is list]
    return _section_in([get_args(kind)[0] for kind in lists])


def union_members(kind: Any) -> tuple[Any, ...]:
    """The members of a union type; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _section_in(kinds: Iterable[Any]) -> type[Section] | None:
    bare = (get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)
    return next((kind for kind in bare if isinstance(kind, type) and issubclass(kind, Section)), None)


@dataclass(frozen=True)
class Key:
    """A spec key with its place in the spec, as :func:`walk` yields it."""

    path: str
    info: FieldInfo
    meta: KnobMeta = field(repr=False)
    section: type[Section] | None = None

    @property
    def default(self) -> Any:
        """The run-time default (a fresh copy)."""
        return self.info.get_default(call_default_factory=True)


def walk(kind: type[Section], prefix: str = "") -> Iterator[Key]:
    """Every key of a spec, parents before children, in the order of declaration."""
    for name, info in kind.model_fields.items():
        path = f"{prefix}{name}"
        nested = section_of(info)
        yield Key(path, info, meta_of(info), nested)
        if nested is not None:
            yield from walk(nested, f"{path}.")


def plain(value: Any) -> Any:
    """A spec (or part of one) as dicts, lists, strings, numbers, booleans and None only."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
