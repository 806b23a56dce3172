"""Keys that specs of TAO 5 have and that became several others since; other spellings are aliases of their keys."""

from __future__ import annotations

from typing import Any

from fiducial.run.console import LOGGER

__all__ = ["renamed"]


def renamed(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree under today's names; what is changed is told. What cannot be read so is left to validation."""
    dataset = tree.get("dataset")
    classify = dataset.get("classify") if isinstance(dataset, dict) else None
    shape = classify.get("output_shape") if isinstance(classify, dict) else None
    if not (isinstance(dataset, dict) and isinstance(classify, dict) and isinstance(shape, list) and len(shape) == 2):
        return tree
    LOGGER.info("dataset.classify.output_shape: read as image_height and image_width, %s", shape)
    sizes = {"image_height": shape[0], "image_width": shape[1]}
    others = {key: value for key, value in classify.items() if key != "output_shape"}
    return {**tree, "dataset": {**dataset, "classify": {**sizes, **others}}}
