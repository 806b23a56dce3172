"""What a classify checkpoint's tensors say of the architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from changenet.architecture import backbone_of, value_at
from changenet.classify.rows import Layout
from fiducial.backbones.names import BACKBONES
from fiducial.errors import Problem

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

ARCHITECTURE_KEYS = (
    "model.backbone.type",
    "model.backbone.feat_downsample",
    "model.decode_head.decoder_params.embed_dim",
    "model.decode_head.use_summary_token",
    "model.classify.difference_module",
    "model.classify.learnable_difference_modules",
    "model.classify.embed_dec",
    "model.classify.embedding_vectors",
    "dataset.classify.num_input",
    "dataset.classify.input_map",
    "dataset.classify.concat_type",
    "dataset.classify.grid_map",
    "dataset.classify.image_width",
    "dataset.classify.image_height",
    "dataset.classify.num_classes",
    "dataset.classify.num_golden",
    "dataset.classify.image_ext",
    "dataset.classify.align",
    "dataset.classify.augmentation_config.rgb_input_mean",
    "dataset.classify.augmentation_config.rgb_input_std",
)
"""Spec keys that a trained network is tied to: its layers, and the preprocessing it was trained with."""

SIZE_DEPENDENT = ("decoder.classifier.0.*", "decoder.position_embedding_c*", "fc1.0.*", "decoder.linear_fuse.0.*")
"""Layers whose shapes follow from the image size, the lights or the number of scales."""


def architecture_of(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint's tensors say of the spec it was trained with: spec key to value.

    Keys are those of a Lightning file (``model.…``). What shapes cannot tell (lights, concat type) is left out;
    ``pixels`` is the number of pixels of the composed image, where the classifier tells it.
    """
    shape = {key: tuple(value.shape) for key, value in state_dict.items()}
    known: dict[str, Any] = {}
    if "model.decoder.linear_fuse.0.weight" in shape:
        known["model.classify.difference_module"] = "learnable"
        embed, fused = shape["model.decoder.linear_fuse.0.weight"][:2]
        known["model.decode_head.decoder_params.embed_dim"] = embed
        known["model.classify.learnable_difference_modules"] = fused // embed
        hidden, flat = shape["model.decoder.classifier.0.weight"]
        known["model.classify.embed_dec"] = hidden
        known["dataset.classify.num_classes"] = shape["model.decoder.classifier.6.weight"][0]
        known["pixels"] = flat // embed * 16
        if "model.decoder.attn_c1.W_q.weight" not in shape:
            known["dataset.classify.num_golden"] = 1
    elif "model.fc1.0.weight" in shape and "model.fc1.6.weight" in shape:
        known["model.classify.difference_module"] = "euclidean"
        known["model.classify.embedding_vectors"] = shape["model.fc1.6.weight"][0]
    backbone = backbone_of(shape)
    if backbone:
        known["model.backbone.type"] = backbone
        info = BACKBONES[backbone]
        if info.family == "FAN" and "model.fc1.0.weight" in shape:
            known["pixels"] = shape["model.fc1.0.weight"][1] // info.channels[-1] * info.strides[-1] ** 2
    # only the head that compares maps has the layer of the summary token
    if "model.decoder.linear_fuse.0.weight" in shape and any(key.startswith("model.backbone.radio.") for key in shape):
        known["model.decode_head.use_summary_token"] = "model.backbone.fc_summary.weight" in shape
    return known


def differences(
    spec: ExperimentSpec, state_dict: Mapping[str, Tensor], trained: Mapping[str, Any] | None
) -> Iterator[Problem]:
    """Spec keys whose value does not fit a checkpoint.

    ``trained`` is the spec stored in the file when it is one of ours: it counts where the tensors are silent.
    """
    known = architecture_of(state_dict)
    pixels = known.pop("pixels", None)
    for key, value in known.items():
        mine = value_at(spec, key)
        if mine != value and not (key == "model.backbone.type" and mine not in BACKBONES):
            yield Problem(key, f"{mine!r} in the spec, {value!r} in the checkpoint", f"set {key}={value}")
    height, width = Layout.of(spec.dataset.classify).composed
    if pixels is not None and height * width != pixels:
        side = math.isqrt(pixels)
        shown = f"{side} x {side}" if side * side == pixels else "height x width"
        found = f"the spec composes {height} x {width} images, the checkpoint was trained on {pixels} pixels ({shown})"
        yield Problem("dataset.classify.image_height, image_width, input_map, concat_type", found, "use the training's")
    silent = [key for key in ARCHITECTURE_KEYS if key not in known and key.startswith("dataset.classify.")]
    for key in silent if trained else []:
        theirs = _at(trained, key)
        mine = value_at(spec, key)
        # the order of the entries counts too: that of the lights
        same = list(theirs.items()) == list((mine or {}).items()) if isinstance(theirs, dict) else theirs == mine
        if theirs is not None and not same and not key.endswith(("image_ext", "mean", "std", "align")):
            yield Problem(key, f"{mine!r} in the spec, {theirs!r} in training", f"set {key} to the training's value")


def _at(tree: Mapping[str, Any] | None, key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
