"""A spec's keys as JSON Schema 2020-12: what editors complete, explain and check a YAML spec with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from fiducial.spec.knob import MISSING, Section, item_section_of, meta_of, section_of

__all__ = ["strict_schema"]

_UNFILLED = {"const": MISSING, "description": "To be filled in."}


def strict_schema(kind: type[Section], title: str) -> dict[str, Any]:
    """Every key that a spec may have, also those that only this project knows, and no other.

    It is what the code demands in types, choices and bounds; spellings that the code also takes (another case, ``32``
    for ``"32"``) are not told. Keys without effect and old names are marked as deprecated.
    """
    made = kind.model_json_schema(schema_generator=GenerateJsonSchema, mode="validation")
    definitions = made.pop("$defs", {})
    for section in {kind, *_sections(kind)}:
        node = made if section is kind else definitions.get(section.__name__)
        if node is not None:
            _explain(section, node)
    made.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **{name: value for name, value in made.items() if name != "title"},
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }


def _explain(section: type[Section], node: dict[str, Any]) -> None:
    node.pop("title", None)
    properties = node.get("properties", {})
    for name, info in section.model_fields.items():
        meta, known = meta_of(info), properties[name]
        known.pop("title", None)
        if meta.ignored:
            known["deprecated"] = True
            known["description"] = f"{meta.help} No effect: {meta.ignored}."
        if meta.options and "enum" not in known:
            known["examples"] = list(meta.options)
        if meta.has_template and meta.template == MISSING and known.get("type") != "string":
            _also(known, _UNFILLED)
        for alias in meta.aliases:
            properties[alias] = {**known, "deprecated": True, "description": f"Old name of {name}."}


def _also(node: dict[str, Any], other: dict[str, Any]) -> None:
    """Let a value be of another kind, too."""
    about = ("description", "default", "deprecated", "examples")
    kinds = node["anyOf"] if "anyOf" in node else [{k: v for k, v in node.items() if k not in about}]
    for name in [name for name in node if name not in about]:
        del node[name]
    node["anyOf"] = [*kinds, other]


def _sections(kind: type[Section]) -> Iterator[type[Section]]:
    for info in kind.model_fields.values():
        for nested in (section_of(info), item_section_of(info)):
            if nested is not None:
                yield nested
                yield from _sections(nested)
