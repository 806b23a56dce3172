"""When the features of a frozen backbone can be kept, and what is said where they cannot. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fiducial.backbones.names import BACKBONES
from fiducial.errors import Problem

if TYPE_CHECKING:
    from changenet.augment_config import RandomColor
    from changenet.config import ExperimentSpec

__all__ = ["MOST_VARIANTS", "check_feature_cache", "is_kept", "makes_new"]

MOST_VARIANTS = 8
"""What mirrors and quarter turns make of a square picture."""
_WHERE = "train.feature_cache"


def is_kept(spec: ExperimentSpec) -> bool:
    """Whether training keeps features: it is asked to, and the backbone is frozen as a whole."""
    return spec.train.feature_cache != "off" and spec.model.backbone.freeze_backbone and _is_whole(spec)


def makes_new(spec: ExperimentSpec) -> list[str]:
    """The keys that make a new picture of every training picture; mirrors and turns only make a few of each."""
    if spec.task == "classify":
        config = spec.dataset.classify.augmentation_config
        switches = {
            "with_random_crop": config.with_random_crop,
            "with_random_blur": config.with_random_blur,
            "random_color.enable": _recolors(config.random_color, spec.compat == "tao"),
        }
        where = "dataset.classify.augmentation_config"
        return [f"{where}.{name}" for name, on in switches.items() if on and config.augment]
    data = spec.dataset.segment
    change, zoom = data.augmentation, data.augmentation.with_scale_random_crop
    switches = {
        "augmentation.with_random_crop": change.with_random_crop,
        "augmentation.with_random_blur": change.with_random_blur,
        "augmentation.random_color.enable": _recolors(change.random_color, spec.compat == "tao"),
        "augmentation.with_scale_random_crop.enable": zoom.enable and set(zoom.scale_range) != {1},
        "windows.enable": data.windows.enable,
    }
    return [f"dataset.segment.{name}" for name, on in switches.items() if on]


def check_feature_cache(spec: ExperimentSpec) -> Iterator[Problem]:
    """A cache that is of no use, or of little."""
    wanted = spec.train.feature_cache
    if wanted == "off":
        return
    if not spec.model.backbone.freeze_backbone:
        found = f"{wanted} is of no use: the backbone is trained, so that no feature stays"
        yield Problem(_WHERE, found, "set model.backbone.freeze_backbone: true, or feature_cache: off", "warning")
    elif not _is_whole(spec):
        found = f"{wanted} is of no use: the adapter, which is trained, comes before the frozen blocks of a ViT"
        yield Problem(_WHERE, found, "set it off, or use a FAN backbone" + _other(spec), "warning")
    elif keys := makes_new(spec):
        found = f"{wanted} is of no use in training: every picture is new ({', '.join(keys)}); validation is kept"
        yield Problem(_WHERE, found, "switch those off; mirrors and quarter turns may stay", "warning")
    if is_kept(spec) and spec.train.compile:
        found = f"{wanted}: what is trained on kept features is not compiled"
        yield Problem("train.compile", found, "choose one of the two", "warning")


def _is_whole(spec: ExperimentSpec) -> bool:
    """Whether freezing the backbone leaves nothing of it to be trained."""
    info = BACKBONES.get(spec.model.backbone.type)
    is_embedding = spec.task == "classify" and spec.model.classify.difference_module == "euclidean"
    return info is not None and (info.family == "FAN" or is_embedding)


def _other(spec: ExperimentSpec) -> str:
    return " or difference_module: euclidean" if spec.task == "classify" else ""


def _recolors(color: RandomColor, compat_tao: bool) -> bool:
    amounts = (color.brightness, color.contrast, color.saturation, color.hue)
    return color.enable and any(amounts) and (compat_tao or color.color_probability > 0)
