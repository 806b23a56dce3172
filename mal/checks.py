"""The rules of a MAL spec that span keys. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fiducial.errors import Problem

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["WEIGHTS_KEY", "check_spec"]

WEIGHTS_KEY = "train.pretrained_model_path"


def check_spec(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    """Every problem of a spec for an action."""
    yield from _check_model(spec)
    train = spec.train
    if len(train.mask_thres) == 2:
        yield Problem("train.mask_thres", "2 numbers", "give one, or three for small, medium and large boxes")
    if train.margin_rate[0] > train.margin_rate[1] or train.margin_rate[0] <= -1:
        yield Problem("train.margin_rate", f"found {train.margin_rate}", "give the least and the most, above -1")
    if train.test_margin_rate[0] <= -2:
        yield Problem("train.test_margin_rate", f"found {train.test_margin_rate}", "give a number above -2")
    if train.crf_kernel_size % 2 == 0:
        yield Problem("train.crf_kernel_size", f"{train.crf_kernel_size} is even", "use an odd number such as 3")
    if train.crf_value_low_thres >= train.crf_value_high_thres:
        found = f"{train.crf_value_low_thres} is not below crf_value_high_thres {train.crf_value_high_thres}"
        yield Problem("train.crf_value_low_thres", found, "use 0.1 and 0.9")
    if spec.dataset.min_obj_size >= spec.dataset.max_obj_size:
        found = f"{spec.dataset.min_obj_size:g} is not below max_obj_size {spec.dataset.max_obj_size:g}"
        yield Problem("dataset.min_obj_size", found, "no box is left; lower it")
    if action == "train" and train.num_epochs <= train.warmup_epochs:
        found = f"{train.warmup_epochs} of {train.num_epochs} epochs"
        fix = "the learning rate only grows; more epochs, or a shorter warm-up"
        yield Problem("train.warmup_epochs", found, fix, "warning")
    if action == "evaluate" and not spec.dataset.load_mask:
        yield Problem("dataset.load_mask", "false: evaluate has nothing to compare with", "set it to true")


def _check_model(spec: ExperimentSpec) -> Iterator[Problem]:
    from fiducial.backbones.names import map_info

    model, side = spec.model, spec.dataset.crop_size
    try:
        patch = map_info(model.arch).stride
    except ValueError as error:
        yield Problem("model.arch", str(error), "the default is vit-mae-base/16")
        return
    if side % patch:
        low = side // patch * patch
        fix = f"set {low} or {low + patch}" if low else f"set {patch}"
        yield Problem("dataset.crop_size", f"{side} is no multiple of the patch {patch} of {model.arch}", fix)
    elif (side // patch) % 2 and not model.not_adjust_scale:
        found = f"{side} gives {side // patch} patches a side, which are halved for small boxes"
        yield Problem("dataset.crop_size", found, "an even number of patches loses nothing", "warning")
    if not model.not_adjust_scale:
        if model.mask_scale_ratio != 2:
            yield Problem("model.mask_scale_ratio", f"found {model.mask_scale_ratio:g}", "2, or not_adjust_scale=true")
        if model.mask_scale_ratio_pre != 1:
            found = f"found {model.mask_scale_ratio_pre}"
            yield Problem("model.mask_scale_ratio_pre", found, "1, or not_adjust_scale=true")
