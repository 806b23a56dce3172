"""What schemas, templates and documents show of a key. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fiducial.spec.knob import Key, Section, item_section_of, meta_of, plain, section_of

__all__ = ["Placed", "advertised", "placed", "shown_value", "tree_of"]


@dataclass(frozen=True)
class Placed:
    """A key with what its place says of it."""

    key: Key
    actions: tuple[str, ...]
    """The actions that use it; empty: all."""
    own: bool
    """Whether it is this project's own, or below one that is."""
    section: type[Section] | None
    """Its section, or that of the items of its list."""


def placed(
    kind: type[Section], actions: Collection[str], prefix: str = "", used: tuple[str, ...] = (), own: bool = False
) -> Iterator[Placed]:
    """Every key, also of sections in lists (``layers[].weights``), a section's keys before its own sections.

    ``actions`` are those of the network.
    """
    below: list[Placed] = []
    for name, info in kind.model_fields.items():
        meta = meta_of(info)
        counts = meta.actions or used or ((name,) if name in actions and not prefix else ())
        items = item_section_of(info)
        key = Key(f"{prefix}{name}", info, meta, section_of(info))
        found = Placed(key, counts, own or not meta.schema, key.section or items)
        if key.section is None:
            yield found
        if found.section is not None:
            below.append(found)
    for found in below:
        if found.key.section is not None:
            yield found
        inside = f"{found.key.path}{'' if found.key.section else '[]'}."
        assert found.section is not None
        yield from placed(found.section, actions, inside, found.actions, found.own)


def advertised(kind: type[Section], prefix: str = "") -> Iterator[Key]:
    """The keys that stand in schemas and templates of TAO's layout, parents before children."""
    for name, info in kind.model_fields.items():
        meta, nested = meta_of(info), section_of(info)
        if meta.schema:
            yield Key(f"{prefix}{name}", info, meta, nested)
            if nested is not None:
                yield from advertised(nested, f"{prefix}{name}.")


def shown_value(key: Key) -> Any:
    """What a template shows for a key, as plain data; blank where it is a text that is not set."""
    value = plain(key.meta.template) if key.meta.has_template else plain(key.default)
    return "" if value is None and key.value_type == "string" else value


def tree_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings for dotted keys."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree
