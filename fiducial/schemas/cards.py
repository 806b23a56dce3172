"""The manifest of a network's schemas, and its card: actions, what they take and give, short names of keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fiducial.actions.action import Action
from fiducial.schemas.tao import SchemaOf
from fiducial.schemas.values import placed
from fiducial.spec.knob import Section, walk
from fiducial.task import Task

__all__ = ["manifest", "network_card"]

_FROM_PARENT = "the run's own model when empty"
_SPEC_PARAMS: Mapping[str, Mapping[str, str]] = {
    "train": {
        "train.resume_training_checkpoint_path": "newest checkpoint of the results folder when empty",
        "train.pretrained_model_path": "weights to begin with",
        "model.backbone.pretrained_backbone_path": "weights of the backbone to begin with",
        "model.pretrained_model_path": "weights to begin with",
    },
    "evaluate": {"evaluate.checkpoint": _FROM_PARENT, "evaluate.trt_engine": "an engine in place of a checkpoint"},
    "inference": {
        "inference.checkpoint": _FROM_PARENT,
        "inference.trt_engine": "an engine in place of a checkpoint",
        "inference.label_dump_path": "<results_dir>/inference.json when empty",
    },
    "export": {"export.checkpoint": _FROM_PARENT, "export.onnx_file": "beside the checkpoint when empty"},
    "quantize": {"quantize.model_path": _FROM_PARENT},
    "gen_trt_engine": {
        "gen_trt_engine.onnx_file": "the exported file of the run when empty",
        "gen_trt_engine.trt_engine": "<results_dir>/model.engine when empty",
        "gen_trt_engine.tensorrt.calibration.cal_cache_file": "<results_dir>/cal.bin when empty",
    },
}
"""Of each action, the keys that a caller fills in from what an earlier action left, and what an empty one means."""


def manifest(network: str, schemas: Mapping[str, tuple[SchemaOf, Mapping[str, Any]]]) -> dict[str, Any]:
    """What schemas there are, by their names, and what a search and a form ask of each."""
    actions = {
        name: {
            "path": f"schemas/{name}.schema.json",
            "spec_template": f"references/spec_template_{name}.yaml",
            "schema_action": about.action,
            "core_module": network,
            "popular": schema.get("popular", {}),
            "automl_default_parameters": schema["automl_default_parameters"],
            "automl_disabled_parameters": schema["automl_disabled_parameters"],
        }
        for name, (about, schema) in schemas.items()
    }
    return {
        "schema_version": 1,
        "model": network.replace("_", "-"),
        "network_arch": network,
        "automl_enabled": any(schema["automl_default_parameters"] for _, schema in schemas.values()),
        "failures": {},
        "actions": actions,
    }


def network_card(tasks: Sequence[Task[Any]], actions: Mapping[str, Action], names: Sequence[str]) -> dict[str, Any]:
    """Actions, their commands, inputs and outputs, keys that are filled in for a caller, and short names.

    ``names`` are those of the schemas.
    """
    kind, network = tasks[0].spec_model(), tasks[0].network
    known = {key.path for key in walk(kind)}
    return {
        "name": tasks[0].title,
        "network_arch": network,
        "tasks": {task.name: {"monitored": task.metrics.default, "prefix": task.prefix} for task in tasks},
        "actions": {
            name: {
                "help": action.help,
                "command": f"{network} {name} -e SPEC.yaml [key=value ...]",
                **({"verbs": list(action.verbs)} if action.verbs else {}),
                "inputs": {path: _file_or_folder(path) for path in _inputs(kind, actions, name)},
                "outputs": f"<results_dir>/{name}",
            }
            for name, action in actions.items()
        },
        "spec_params": {
            name: found
            for name, keys in _SPEC_PARAMS.items()
            if name in actions and (found := {path: how for path, how in keys.items() if path in known})
        },
        "spec_shorthand_keys": {task.name: _lists(task.shorthands) for task in tasks},
        "spec_templates": {name: f"references/spec_template_{name}.yaml" for name in names},
    }


_FILES = ("_path", "_file", "checkpoint", "trt_engine", "class_map", "gallery")
_FOLDERS = ("_dir", "root_dir", "_dataset", "reference", "query", "source", "cal_image_dir", "input_path")
_WRITTEN = ("results_dir", "export.onnx_file", "gen_trt_engine.trt_engine", "label_dump_path", "dirpath")


def _inputs(kind: type[Section], actions: Collection[str], action: str) -> list[str]:
    """Keys that name files and folders which an action reads."""
    return [
        found.key.path
        for found in placed(kind, actions)
        if found.section is None
        and found.key.path.endswith((*_FILES, *_FOLDERS))
        and not found.key.path.endswith(_WRITTEN)
        and found.key.value_type != "bool"
        and (action in found.actions or not found.actions)
    ]


def _file_or_folder(path: str) -> str:
    return "folder" if path.endswith(_FOLDERS) else "file"


def _lists(shorthands: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {name: paths[0] if len(paths) == 1 else list(paths) for name, paths in sorted(shorthands.items())}
