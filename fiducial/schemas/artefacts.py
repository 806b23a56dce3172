"""Everything that is generated from a network's knobs, as texts by file name. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from fiducial.actions.action import Action
from fiducial.actions.registry import actions_of
from fiducial.schemas.cards import manifest, network_card
from fiducial.schemas.reference import key_reference
from fiducial.schemas.strict import strict_schema
from fiducial.schemas.tao import SchemaOf, tao_schema
from fiducial.schemas.yaml_text import explained_yaml
from fiducial.task import Task

__all__ = ["REFERENCE", "STRICT", "artefacts"]

STRICT = "schemas/spec.schema.json"
"""The one for editors, of a whole spec."""
REFERENCE = "references/keys.md"
_EDITOR_LINE = f"# yaml-language-server: $schema=../{STRICT}\n"


def artefacts(tasks: Sequence[Task[Any]]) -> dict[str, str]:
    """Of one network: its schemas in TAO's layout with their manifest, the strict one, templates, card, reference."""
    kind, network = tasks[0].spec_model(), tasks[0].network
    actions = _with_keys(tasks)
    about = {found.name: found for found in _schemas(tasks, actions)}
    schemas = {name: (found, tao_schema(kind, found)) for name, found in about.items()}
    files = {f"schemas/{name}.schema.json": _json(schema) for name, (_, schema) in schemas.items()}
    files["schemas/manifest.json"] = _json(manifest(network, schemas))
    files[STRICT] = _json(strict_schema(kind, f"A spec of {tasks[0].title}"))
    for name, (found, schema) in schemas.items():
        text = explained_yaml(kind, _merged(schema["default"], found.tuned))
        files[f"references/spec_template_{name}.yaml"] = _EDITOR_LINE + text
    files["references/skill_info.yaml"] = _yaml(network_card(tasks, actions, tuple(about)))
    files[REFERENCE] = key_reference(tasks, actions)
    return files


def _with_keys(tasks: Sequence[Task[Any]]) -> dict[str, Action]:
    """The actions that have a section of the spec."""
    fields = tasks[0].spec_model().model_fields
    return {name: action for name, action in actions_of(tasks).items() if name in fields and not action.refusal}


def _schemas(tasks: Sequence[Task[Any]], actions: Mapping[str, Action]) -> Iterator[SchemaOf]:
    for place, task in enumerate(tasks):
        shown = {"task": task.name} if len(tasks) > 1 else {}
        for action in actions:
            if action == "automl":  # whose keys stand in no schema of TAO's
                continue
            name = f"{task.name}_{action}" if place else action  # the first task's have no prefix, as in TAO
            tuned = {**task.template.get("", {}), **task.template.get(action, {})}
            yield SchemaOf(task.network, action, name, tuple(actions), shown, tuned)


def _merged(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree with other values at some dotted keys, which are there."""
    merged: dict[str, Any] = deepcopy(dict(tree))
    for path, value in values.items():
        *parents, name = path.split(".")
        place = merged
        for parent in parents:
            place = place[parent]
        place[name] = value
    return merged


def _json(tree: Any) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _yaml(tree: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    return text
