"""Reading a classify network out of a checkpoint: older layouts, and what the tensors say of the architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from changenet.classify.rows import Layout
from fiducial.backbones.names import BACKBONES
from fiducial.checkpoints.keys import KeyMap
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

KEY_MAPS = (
    KeyMap(
        layout="C-RADIO adapter of TAO up to 6.25.7",
        has=("model.backbone.radio.model.", "model.backbone.spm."),
        renames=(("model.backbone.radio.model.", "model.backbone.radio.radio.radio.model."),),
    ),
)


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
    backbone = _backbone_of(shape)
    if backbone:
        known["model.backbone.type"] = backbone
        info = BACKBONES[backbone]
        if info.family == "FAN" and "model.fc1.0.weight" in shape:
            known["pixels"] = shape["model.fc1.0.weight"][1] // info.channels[-1] * info.strides[-1] ** 2
    if any(key.startswith("model.backbone.radio.") for key in shape):
        known["model.decode_head.use_summary_token"] = "model.backbone.fc_summary.weight" in shape
    return known


def _backbone_of(shape: Mapping[str, tuple[int, ...]]) -> str | None:
    """The backbone's name by its depth and width; None where several fit or none does."""
    prefix = "model.backbone."
    inner = next((key for key in shape if key.startswith(prefix) and ".blocks.0.norm1.weight" in f".{key}"), None)
    if inner is None:
        return None
    stem = inner.removesuffix("blocks.0.norm1.weight")
    blocks = {key.removeprefix(stem).split(".")[1] for key in shape if key.startswith(f"{stem}blocks.")}
    width, depth = shape[inner][0], len(blocks)
    if f"{prefix}patch_embed.backbone.stem.0.weight" in shape:
        by_size = {(192, 8): "tiny_8", (384, 10): "small_12", (448, 16): "base_16", (480, 22): "large_16"}
        return f"fan_{by_size[width, depth]}_p4_hybrid" if (width, depth) in by_size else None
    if "patch_generator.cls_token.token" in "".join(shape) and f"{stem}blocks.0.mlp.norm.weight" not in shape:
        size = {768: "base", 1024: "large", 1280: "huge"}.get(width)
        return f"c_radio_v2_vit_{size}_patch16_224" if size else None
    return "vit_large_nvdinov2" if f"{stem}blocks.0.ls1.gamma" in shape and width == 1024 else None


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


def value_at(spec: Any, key: str) -> Any:
    """The value of a dotted key in a spec object."""
    for part in key.split("."):
        spec = getattr(spec, part)
    return spec


def _at(tree: Mapping[str, Any] | None, key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
