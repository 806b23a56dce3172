"""One declaration per spec key.

A *knob* is a pydantic field that also carries what the command line, the JSON schema, the template, the
documentation and the hyper-parameter search need to know about the key. :func:`knob` is the only way to declare one,
and :class:`Section` the only base of a group of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from fiducial.spec.bounds import check_items, hard_bounds
from fiducial.spec.meta import KnobMeta, Range, meta_of
from fiducial.spec.value_types import (
    LIST_TYPES,
    OBJECT_TYPES,
    ValueType,
    choices_of,
    item_type_of,
    union_members,
    value_type_of,
)

__all__ = [
    "MISSING",
    "Key",
    "KnobMeta",
    "Section",
    "item",
    "item_section_of",
    "knob",
    "meta_of",
    "plain",
    "replaced",
    "section",
    "section_of",
    "union_members",
    "walk",
]

SectionT = TypeVar("SectionT", bound="Section")

MISSING = "???"
"""OmegaConf's spelling of "to be filled in"."""


class Section(BaseModel):
    """A group of spec keys. Frozen; unknown keys, and numbers that are none or infinite, are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        protected_namespaces=(),
        validate_default=False,
        allow_inf_nan=False,  # a key to which infinity means something is Annotated[float, AllowInfNan(True)]
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name, info in cls.model_fields.items():
            _check_declaration(Key(f"{cls.__name__}.{name}", info, meta_of(info), section_of(info)))


def knob(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    **meta: Any,
) -> Any:
    """Declare one spec key.

    Args:
        default: What the code uses when the key is absent; ``list``, ``dict`` and Section values are copied per spec.
        help: One or two sentences about it.
        ge, gt, le, lt: Hard bounds. Outside them the run cannot work: an error.
        meta: The other attributes of :class:`KnobMeta`.

    Raises: TypeError for metadata that KnobMeta does not know, ValueError for values of it that cannot be.
    """
    known = KnobMeta(help=help, **meta)
    given = {"ge": ge, "gt": gt, "le": le, "lt": lt, "pattern": known.pattern}
    limits: dict[str, Any] = {name: limit for name, limit in given.items() if limit is not None}
    if isinstance(default, (list, dict)):
        made: Any = Field(default_factory=lambda: type(default)(default), description=help, **limits)
    else:
        made = Field(default=default, description=help, **limits)
    made.metadata.append(known)
    if known.items:
        made.metadata.append(AfterValidator(lambda values: check_items(known.items, values)))
    return made


def item(help: str, **meta: Any) -> Any:
    """Declare what is special about one item of a list knob: ``items={1: item("…", ge=0, automl=True)}``.

    Takes what :func:`knob` takes; its default is the item of the list's default.
    """
    return knob(..., help, **meta)


def section(kind: type[Section], help: str, **meta: Any) -> Any:
    """Declare a nested section whose keys all have their defaults."""
    made: Any = Field(default_factory=kind, description=help)
    made.metadata.append(KnobMeta(help=help, **meta))
    return made


def section_of(info: FieldInfo) -> type[Section] | None:
    """The Section class a field holds (also when optional), or None for a plain value; a list is a plain value."""
    return _section_in(union_members(info.annotation))


def item_section_of(info: FieldInfo) -> type[Section] | None:
    """The Section class of the items of a field that is a list of sections; else None."""
    lists = [kind for kind in union_members(info.annotation) if get_origin(kind) is list]
    return _section_in([get_args(kind)[0] for kind in lists])


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

    @property
    def options(self) -> tuple[Any, ...]:
        """The values that are documented; none where any value of the type is meant."""
        return self.meta.options or choices_of(self.info.annotation)

    @property
    def value_type(self) -> ValueType:
        """TAO's word for the kind of value."""
        return self.meta.value_type or value_type_of(self.info.annotation, self.options)

    @property
    def automl(self) -> bool | None:
        """TAO's flag of the search: lists and collections are not searched unless they say so."""
        if self.meta.automl is None and self.value_type in LIST_TYPES | OBJECT_TYPES:
            return False
        return self.meta.automl

    @property
    def schema_range(self) -> Range:
        """Minimum and maximum that generated schemas show; ``inf`` is no limit that is shown, None none at all."""
        if self.meta.schema_range is not None:
            return self.meta.schema_range
        low, high = self.meta.usual or (None, None)
        hard = hard_bounds(self.info)
        return (
            hard.get("ge", hard.get("gt")) if low is None else low,
            hard.get("le", hard.get("lt")) if high is None else high,
        )

    def items(self) -> Iterator[Key]:
        """The list's items that have metadata of their own, under names such as ``cls_weight[1]``."""
        for index, declared in self.meta.items.items():
            info, meta = copy(declared), meta_of(declared)
            info.annotation = item_type_of(self.info.annotation)
            info.default = self.default[index]
            if self.meta.has_template:
                meta = replace(meta, template=self.meta.template[index])
            yield Key(f"{self.path}[{index}]", info, meta)


def _check_declaration(key: Key) -> None:
    """Raises: TypeError when the metadata of a key does not fit its type or default."""
    value_type = key.value_type
    weights = key.meta.option_weights
    if weights is not None and len(weights) != len(key.options):
        raise TypeError(f"{key.path}: {len(weights)} option_weights for {len(key.options)} options")
    if not key.meta.items:
        return
    if value_type not in LIST_TYPES:
        raise TypeError(f"{key.path}: items of a {value_type}; only lists have items")
    beyond = [index for index in key.meta.items if index >= len(key.default or ())]
    if beyond:
        raise TypeError(f"{key.path}: the default has no item {beyond[0]}")


def walk(kind: type[Section], prefix: str = "") -> Iterator[Key]:
    """Every key of a spec, parents before children, in the order of declaration."""
    for name, info in kind.model_fields.items():
        path = f"{prefix}{name}"
        nested = section_of(info)
        yield Key(path, info, meta_of(info), nested)
        if nested is not None:
            yield from walk(nested, f"{path}.")


def replaced(spec: SectionT, path: str, value: Any) -> SectionT:
    """A copy of a spec with another, valid value at a dotted key."""
    name, _, rest = path.partition(".")
    inner = replaced(getattr(spec, name), rest, value) if rest else value
    return spec.model_copy(update={name: inner})


def plain(value: Any) -> Any:
    """A spec (or part of one) as dicts, lists, strings, numbers, booleans and None only."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
