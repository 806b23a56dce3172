"""What a ChangeNet checkpoint's tensors say of the network, whatever its task. Shapes are enough; no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fiducial.backbones.names import BACKBONES, backbones_of
from fiducial.errors import Problem

__all__ = ["BACKBONE", "backbone_facts", "contradictions", "fitting_backbones", "sizes", "task_of", "value_at"]

BACKBONE = "model.backbone.type"
_PREFIX = "model.backbone."
_TASK_LAYERS = {
    "decoder.change_probability.conv2d.weight": "segment",
    "decoder.classifier.0.weight": "classify",
    "fc1.0.weight": "classify",
}
"""Layers that only one task has."""


def task_of(keys: Iterable[str]) -> str | None:
    """``classify`` or ``segment`` by the names of a checkpoint's tensors; None for other networks."""
    names = {key.removeprefix("model.") for key in keys}
    return next((task for layer, task in _TASK_LAYERS.items() if layer in names), None)


def sizes(shape: Mapping[str, tuple[int, ...]], key: str, dims: int) -> tuple[int, ...]:
    """The shape of a layer; zeros where the checkpoint has none of so many dimensions."""
    found = shape.get(key, ())
    return found if len(found) == dims else (0,) * dims


def fitting_backbones(shape: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The backbones that a checkpoint's can be; ``shape``: of every tensor of a Lightning file (``model.…``)."""
    return backbones_of({key.removeprefix(_PREFIX): dims for key, dims in shape.items() if key.startswith(_PREFIX)})


def backbone_facts(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Spec keys of the backbone to the values that its tensors tell; of a flag only where they have a place for it."""
    known: dict[str, Any] = {}
    if backbones := fitting_backbones(shape):
        known[BACKBONE] = backbones[0]
    # an embedding has no layers for the summary token, and NVDINOv2's adapter has them whatever the flag says
    obeys = any(key.startswith((f"{_PREFIX}radio.", f"{_PREFIX}vit.")) for key in shape)
    if obeys and f"{_PREFIX}level_embed" in shape:
        known["model.decode_head.use_summary_token"] = f"{_PREFIX}fc_summary.weight" in shape
    return known


def contradictions(spec: Any, known: Mapping[str, Any], backbones: Collection[str]) -> Iterator[Problem]:
    """Where the spec has another value than a checkpoint, of which ``backbones`` fit."""
    for key, value in known.items():
        mine = value_at(spec, key)
        fits = mine in backbones or mine not in BACKBONES if key == BACKBONE else mine == value
        if not fits:
            yield Problem(key, f"{mine!r} in the spec, {value!r} in the checkpoint", f"set {key}={value}")


def value_at(spec: Any, key: str) -> Any:
    """The value of a dotted key in a spec object."""
    for part in key.split("."):
        spec = getattr(spec, part)
    return spec
