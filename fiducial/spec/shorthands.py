"""Short names of spec keys, as TAO's service takes them: ``learning_rate=1e-4`` for ``train.optim.lr=1e-4``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fiducial.spec.messages import nearest

__all__ = ["COMMON", "Shorthands", "expand", "key_meant", "task_of"]

Shorthands = Mapping[str, tuple[str, ...]]
"""A short name, and the keys that it sets."""

COMMON: Shorthands = {
    "num_epochs": ("train.num_epochs",),
    "num_gpus": ("train.num_gpus",),
    "gpu_ids": ("train.gpu_ids",),
    "num_nodes": ("train.num_nodes",),
    "seed": ("train.seed",),
    "checkpoint_interval": ("train.checkpoint_interval",),
    "validation_interval": ("train.validation_interval",),
    "resume_checkpoint": ("train.resume_training_checkpoint_path",),
    "evaluate_checkpoint": ("evaluate.checkpoint",),
    "inference_checkpoint": ("inference.checkpoint",),
    "export_checkpoint": ("export.checkpoint",),
    "evaluate_batch_size": ("evaluate.batch_size",),
    "inference_batch_size": ("inference.batch_size",),
    "export_batch_size": ("export.batch_size",),
    "onnx_file": ("export.onnx_file",),
    "opset_version": ("export.opset_version",),
}
"""Those of every network."""

_SHORT = re.compile(r"^(?P<sign>\+{0,2})(?P<name>\w+)(?P<rest>=.*)$", re.DOTALL)


def expand(overrides: Sequence[str], shorthands: Shorthands) -> Iterator[tuple[str, str]]:
    """The overrides with keys in place of short names, each with a line that says so, or an empty one."""
    for text in overrides:
        found = _SHORT.match(text)
        paths = shorthands.get(found["name"], ()) if found else ()
        if found and paths:
            for path in paths:
                yield f"{found['sign']}{path}{found['rest']}", f"{found['name']}: read as {path}"
        else:
            yield text, ""


def key_meant(name: str, keys: Iterable[str], shorthands: Shorthands) -> str:
    """What to do about a key that is not there: write those that its short name stands for, or the closest one."""
    if name in shorthands:
        return f"write {' and '.join(shorthands[name])} in full"
    return f"name a key{nearest(name, keys)}"


def task_of(overrides: Sequence[str], tree: Mapping[str, Any]) -> str:
    """The task that a spec and its overrides name; empty where they name none."""
    named = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("task=")]
    return named[-1] if named else str(tree.get("task") or "")
