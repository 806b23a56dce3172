"""What a spec key carries for the command line, schemas, documents and the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic.fields import FieldInfo

from fiducial.spec.dependency import Dependency
from fiducial.spec.value_types import VALUE_TYPES, ValueType

Range = tuple[float | None, float | None]
"""The lower and the upper end; None where there is none."""

_UNSET: Any = object()


@dataclass(frozen=True)
class KnobMeta:
    """What is known about a key besides its type, default and hard bounds.

    Attributes:
        help: One or two sentences; shown by ``--help``, in the schema and in the documentation.
        template: What generated templates and schemas show, where it differs from the default.
        usual: Outside it the run works but is odd: a warning.
        schema_range: What generated schemas show as minimum and maximum; ``inf`` is shown as TAO's Infinity, None is
            not shown. Left out: the ends of ``usual``, and where it has none the hard bounds.
        elsewhere: The ``schema_range`` in schemas of other actions than the key's own; there it is not searched.
        value_type: TAO's word for the kind of value, where the type and the options do not say it.
        options: Values that are documented, where they are not those of a ``Literal``.
        option_weights: How often a search draws each of the options.
        pattern: Regular expression that the text must match; anything else is an error.
        aliases: Other spellings found in documents; accepted with a notice.
        automl: True: searched by default. False: never searched. None: searched only when asked for.
        search: Where a search looks when the spec does not say it; widened to the spec's value.
        log: Whether a search goes by orders of magnitude; None: where the range spans two or more.
        math_cond: Condition of the search (``"> 0.0"``, ``"/ 32"``).
        depends_on: Keys that a search chooses before this one, as :class:`Dependency` reads them.
        parent_param: Other keys depend on this one: a search remembers its value.
        items: Items of a list that have metadata and hard bounds of their own, each an :func:`item`.
        popular: TAO's flag of the keys that user interfaces show first.
        shown: Among what people set: ``--help`` of an action shows it.
        actions: The actions that use the key, or those below it; empty: all, and below an action's name that one.
        weights: It names weights to begin with: also a run's folder, or a word that chooses among its checkpoints.
        required: The action cannot run without it.
        title: Short name for user interfaces.
        schema: False keeps the key out of generated schemas (accepted, not advertised).
        ignored: Why the key has no effect; setting it prints one line that says so.

    Raises: ValueError when these contradict each other.
    """

    help: str
    template: Any = _UNSET
    usual: Range | None = None
    schema_range: Range | None = None
    elsewhere: Range | None = None
    value_type: ValueType | None = None
    options: tuple[Any, ...] | None = None
    option_weights: tuple[float, ...] | None = None
    pattern: str | None = None
    aliases: tuple[str, ...] = ()
    automl: bool | None = None
    search: tuple[float, float] | None = None
    log: bool | None = None
    math_cond: str | None = None
    depends_on: str | None = None
    parent_param: bool = False
    items: Mapping[int, FieldInfo] = field(default_factory=dict)
    popular: bool = False
    shown: bool = False
    actions: tuple[str, ...] = ()
    weights: bool = False
    required: bool = False
    title: str = ""
    schema: bool = True
    ignored: str = ""

    def __post_init__(self) -> None:
        if self.value_type is not None and self.value_type not in VALUE_TYPES:
            raise ValueError(f"value_type {self.value_type!r} is none of {', '.join(sorted(VALUE_TYPES))}")
        for name in ("usual", "schema_range", "elsewhere", "search"):
            low, high = getattr(self, name) or (None, None)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name} ends before it begins: {low:g} … {high:g}")
        if self.depends_on is not None:
            Dependency.parse(self.depends_on)

    @property
    def has_template(self) -> bool:
        """Whether generated templates show another value than the run-time default."""
        return self.template is not _UNSET


def meta_of(info: FieldInfo) -> KnobMeta:
    """The knob's metadata of a field. Raises: TypeError when the field was not made by :func:`knob`."""
    for item in info.metadata:
        if isinstance(item, KnobMeta):
            return item
    raise TypeError(f"a spec key must be declared with knob() or section(), found {info!r}")
