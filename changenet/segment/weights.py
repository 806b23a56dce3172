"""Reading a segment network out of a checkpoint: what its tensors say of the spec it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from changenet.architecture import backbone_facts, contradictions, fitting_backbones, sizes
from fiducial.checkpoints.keys import family_of
from fiducial.errors import Problem

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["architecture_of", "differences", "resized_positions"]

_POSITIONS = "backbone.pos_embed"


def architecture_of(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Spec key to value. Keys of ``state_dict`` are those of a Lightning file (``model.…``)."""
    shape = {key: tuple(value.shape) for key, value in state_dict.items()}
    known: dict[str, Any] = {}
    if embed := sizes(shape, "model.decoder.linear_fuse.0.weight", 4)[0]:
        known["model.decode_head.decoder_params.embed_dim"] = embed
    if num_classes := sizes(shape, "model.decoder.change_probability.conv2d.weight", 4)[0]:
        known["dataset.segment.num_classes"] = num_classes
    return known | backbone_facts(shape)


def differences(spec: ExperimentSpec, state_dict: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Spec keys whose value does not fit a checkpoint."""
    if state_dict and "model.decoder.change_probability.conv2d.weight" not in state_dict:
        where = "model.decoder.change_probability"
        found = f"not in the checkpoint: it is {family_of(state_dict)}, no Visual ChangeNet of task segment"
        if "model.decoder.classifier.0.weight" in state_dict or "model.fc1.0.weight" in state_dict:
            found = "not in the checkpoint: it is of task classify"
        yield Problem(where, found, "give a checkpoint of this task, or set task")
        return
    shape = {key: tuple(value.shape) for key, value in state_dict.items()}
    yield from contradictions(spec, architecture_of(state_dict), fitting_backbones(shape))


def resized_positions(key: str, table: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The position table of NVDINOv2 for another image size; None for every other tensor."""
    if not key.endswith(_POSITIONS) or table.ndim != 3 or table.shape[2] != shape[2]:
        return None
    from fiducial.backbones.dinov2 import resized_positions as resize

    side = round((shape[1] - 1) ** 0.5)
    try:
        return resize(table, (side, side))
    except (ValueError, RuntimeError):  # no square of positions, or no numbers: not a table
        return None
