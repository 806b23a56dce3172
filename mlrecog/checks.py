"""The rules of an ML Recog spec that span keys. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fiducial.errors import Problem
from mlrecog.batch_rules import check_shape

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec

__all__ = ["PRETRAINED", "check_spec"]

PRETRAINED = ("model.pretrained_trunk_path", "model.pretrained_embedder_path", "model.pretrained_model_path")
"""Keys of weights to begin with, in the order in which they are loaded."""


def check_spec(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    """Every problem of a spec for an action."""
    yield from _check_model(spec)
    if action == "train":
        yield from _check_training(spec)
    if action in ("evaluate", "inference") and getattr(spec, action).search == "faiss" and find_spec("faiss") is None:
        yield Problem(f"{action}.search", "faiss is not installed", "pip install 'fiducial[faiss]', or take torch")
    if action == "inference" and spec.inference.gallery and spec.dataset.val_dataset.reference:
        found = f"{spec.inference.gallery}, and dataset.val_dataset.reference is set, too"
        yield Problem("inference.gallery", found, "the kept gallery is searched", "warning")


def _check_model(spec: ExperimentSpec) -> Iterator[Problem]:
    from mlrecog.trunks import FAN, TRUNKS

    model = spec.model
    if model.backbone not in TRUNKS:
        yield Problem("model.backbone", f"unknown: {model.backbone!r}", f"use one of {', '.join(TRUNKS)}")
        return
    info = TRUNKS[model.backbone]
    for key in ("input_width", "input_height"):
        side = getattr(model, key)
        if side % info.multiple:
            low = max(1, side // info.multiple) * info.multiple
            found = f"{side} is no multiple of {info.multiple}, as {model.backbone} needs"
            yield Problem(f"model.{key}", found, f"set {low} or {low + info.multiple}")
    if model.input_width != model.input_height:
        if info.family != FAN and info.multiple > 1:
            yield Problem("model.input_height", f"{model.backbone} takes square pictures", "make both sides equal")
        else:
            found = f"{model.input_width} wide and {model.input_height} high: TAO exchanges the two"
            yield Problem("model.input_width", found, "a checkpoint of TAO needs compat=tao here", "warning")
    if not info.has_linear_head and spec.compat == "tao" and model.feat_dim != info.width:
        found = f"{model.feat_dim}: in TAO {model.backbone} gives {info.width} numbers whatever it is"
        yield Problem("model.feat_dim", found, "leave it, or compat=off", "warning")


def _check_training(spec: ExperimentSpec) -> Iterator[Problem]:
    from mlrecog.config import OPTIMIZERS

    train, optim, data = spec.train, spec.train.optim, spec.dataset
    if not data.train_dataset:
        yield Problem("dataset.train_dataset", "not set", "name the folder that holds a folder for each class")
    if wrong := check_shape(train.batch_size, data.num_instance):
        yield Problem(*wrong)
    if not (train.train_trunk or train.train_embedder):
        yield Problem("train.train_embedder", "false, and train_trunk too: nothing is trained", "set one to true")
    if optim.name not in OPTIMIZERS:
        yield Problem("train.optim.name", f"unknown: {optim.name!r}", f"use one of {', '.join(OPTIMIZERS)}")
    if optim.steps != sorted(optim.steps):
        yield Problem("train.optim.steps", f"{optim.steps} are not in order", f"use {sorted(optim.steps)}")
    if spec.compat != "tao" and optim.warmup_iters >= train.num_epochs:
        found = f"{optim.warmup_iters} epochs of {train.num_epochs}: the rates never reach base_lr"
        yield Problem("train.optim.warmup_iters", found, "use a shorter warm-up, or more epochs", "warning")
    blur = data.gaussian_blur
    if blur.enabled and max(blur.kernel) // 2 >= min(spec.model.input_width, spec.model.input_height):
        yield Problem("dataset.gaussian_blur.kernel", f"{blur.kernel} is larger than the picture", "use a smaller one")
    if blur.sigma[0] > blur.sigma[1]:
        yield Problem("dataset.gaussian_blur.sigma", f"found {blur.sigma}", "give the least and the largest")
    if not 0 < data.crop_scale[0] <= data.crop_scale[1] <= 1:
        yield Problem("dataset.crop_scale", f"found {data.crop_scale}", "give the least and the largest share, in 0..1")
