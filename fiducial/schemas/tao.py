"""A spec's JSON schema in the layout of TAO's packaged schemas, whose words for types are not those of JSON Schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fiducial.schemas.values import advertised, shown_value, tree_of
from fiducial.spec.knob import Key, Section

__all__ = ["SchemaOf", "tao_schema"]

_ALWAYS = ("train", "quantize")
"""Sections of actions that stand in the schema of every action."""


@dataclass(frozen=True)
class SchemaOf:
    """What a schema is for."""

    network: str
    """TAO's name of the network."""
    action: str
    name: str
    """Of the schema: the action, with the task before it where the network has several."""
    actions: Collection[str]
    """Every action of the network: their sections stand in their own schemas."""
    shown: Mapping[str, Any]
    """Values of keys that the schema shows in place of the knobs', ``task`` say."""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """Values that its template shows beside these."""

    def has(self, section: str) -> bool:
        """Whether a top-level key of the spec stands in the schema."""
        return section in (*_ALWAYS, self.action) or section not in self.actions


def tao_schema(kind: type[Section], about: SchemaOf) -> dict[str, Any]:
    """The schema of an action; keys that only this project knows (``schema=False``) are not in it."""
    keys = list(advertised(kind))
    here = [key for key in keys if about.has(key.path.split(".")[0])]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": _properties(here, "", about),
        "default": _defaults(here, "", about),
        "automl_default_parameters": sorted(key.path for key in keys if _searched(key, about)),
        "automl_disabled_parameters": sorted(key.path for key in keys if key.automl is False),
        "popular": tree_of({key.path: _value(key, about) for key in keys if key.meta.popular}),
        "required": sorted({key.path.split(".")[0] for key in here if _required(key, about) and "." in key.path}),
        "x_tao_schema": {
            "action": about.name,
            "core_module": about.network,
            "model": about.network.replace("_", "-"),
            "network_arch": about.network,
            "schema_action": about.action,
            "schema_version": 1,
            "source": "fiducial",
        },
    }
    return {name: value for name, value in schema.items() if value or name.startswith("automl")}


def _properties(keys: list[Key], prefix: str, about: SchemaOf) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for key in keys:
        name = key.path.removeprefix(prefix)
        if key.path.startswith(prefix) and "." not in name:
            nodes[name] = _section(key, keys, about) if key.section else _leaf(key, about)
            for item in key.items():
                nodes[item.path.removeprefix(prefix)] = _leaf(item, about)
    return nodes


def _section(key: Key, keys: list[Key], about: SchemaOf) -> dict[str, Any]:
    prefix = f"{key.path}."
    inside = [found for found in keys if found.path.startswith(prefix)]
    children = [found for found in inside if "." not in found.path.removeprefix(prefix)]
    node = {
        "type": "collection",
        "description": key.meta.help,
        "title": key.meta.title,
        "automl_enabled": False,
        "default": _defaults(inside, prefix, about),
        "properties": _properties(keys, prefix, about),
        "popular": [found.path.removeprefix(prefix) for found in children if found.meta.popular],
        "required": [found.path.removeprefix(prefix) for found in children if _required(found, about)],
    }
    return {name: value for name, value in node.items() if value or value is False}


def _leaf(key: Key, about: SchemaOf) -> dict[str, Any]:
    low, high = _range(key, about)
    value = _value(key, about)
    node = {
        "type": key.value_type,
        "description": key.meta.help,
        "title": key.meta.title or None,
        "default": None if value == {} else value,
        "enum": list(key.options) or None,
        "minimum": low,
        "maximum": high,
        "option_weights": list(key.meta.option_weights or ()) or None,
        "pattern": key.meta.pattern,
        "math_cond": key.meta.math_cond,
        "depends_on": key.meta.depends_on,
        "parent_param": "TRUE" if key.meta.parent_param else None,
        "popular": key.meta.popular or None,
        "automl_enabled": True if _searched(key, about) else (False if key.automl is False else None),
    }
    return {name: value for name, value in node.items() if value is not None}


def _defaults(keys: Sequence[Key], prefix: str, about: SchemaOf) -> dict[str, Any]:
    values = {key.path.removeprefix(prefix): _value(key, about) for key in keys if key.section is None}
    return tree_of({path: value for path, value in values.items() if value is not None})


def _value(key: Key, about: SchemaOf) -> Any:
    return about.shown.get(key.path, shown_value(key))


def _is_elsewhere(key: Key, about: SchemaOf) -> bool:
    return key.meta.elsewhere is not None and key.path.split(".")[0] != about.action


def _range(key: Key, about: SchemaOf) -> tuple[float | None, float | None]:
    if _is_elsewhere(key, about):
        assert key.meta.elsewhere is not None
        return key.meta.elsewhere
    return key.schema_range


def _searched(key: Key, about: SchemaOf) -> bool:
    return bool(key.automl) and not _is_elsewhere(key, about)


def _required(key: Key, about: SchemaOf) -> bool:
    """Whether an action cannot run without it: keys of other actions' sections are not asked for."""
    return key.meta.required and key.path.split(".")[0] == about.action
