"""What a ChangeNet checkpoint's tensors say of the network, whatever its task. Shapes are enough; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["backbone_of", "task_of", "value_at"]

_PREFIX = "model.backbone."
_FAN = {(192, 8): "tiny_8", (384, 10): "small_12", (448, 16): "base_16", (480, 22): "large_16"}
_RADIO = {768: "base", 1024: "large", 1280: "huge"}


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


def backbone_of(shape: Mapping[str, tuple[int, ...]]) -> str | None:
    """The backbone's name by its depth and width; None where several fit or none does.

    ``shape``: of every tensor of a Lightning file (``model.…``).
    """
    inner = next((key for key in shape if key.startswith(_PREFIX) and ".blocks.0.norm1.weight" in f".{key}"), None)
    if inner is None:
        return None
    stem = inner.removesuffix("blocks.0.norm1.weight")
    depth = len({key.removeprefix(stem).split(".")[1] for key in shape if key.startswith(f"{stem}blocks.")})
    width = shape[inner][0]
    if f"{_PREFIX}patch_embed.backbone.stem.0.weight" in shape:
        return f"fan_{_FAN[width, depth]}_p4_hybrid" if (width, depth) in _FAN else None
    is_radio = any("patch_generator.cls_token.token" in key for key in shape)
    if is_radio and f"{stem}blocks.0.mlp.norm.weight" not in shape:
        return f"c_radio_v2_vit_{_RADIO[width]}_patch16_224" if width in _RADIO else None
    return "vit_large_nvdinov2" if f"{stem}blocks.0.ls1.gamma" in shape and width == 1024 else None


def value_at(spec: Any, key: str) -> Any:
    """The value of a dotted key in a spec object."""
    for part in key.split("."):
        spec = getattr(spec, part)
    return spec
