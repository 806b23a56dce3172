"""The rules on a spec that both tasks have. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fiducial.backbones.hub import hub_id, resolve_weights
from fiducial.checkpoints.resolving import real_file
from fiducial.data.remote import is_remote
from fiducial.errors import Problem, UserError

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

_PRECISIONS = frozenset(
    {"32-true", "32", "16-mixed", "16", "bf16-mixed", "bf16", "bf16-true", "16-true", "64-true", "64"}
    | {"transformer-engine"}
)


def check_training(spec: ExperimentSpec) -> Iterator[Problem]:
    """Weights to freeze, number format, intervals, and the checkpoint to continue from."""
    train, backbone = spec.train, spec.model.backbone
    if backbone.freeze_backbone and not (backbone.pretrained_backbone_path or train.pretrained_model_path):
        found = "true, but model.backbone.pretrained_backbone_path is not set"
        yield Problem("model.backbone.freeze_backbone", found, "give weights, or set freeze_backbone: false")
    if train.precision not in _PRECISIONS:
        fix = f"use one of {', '.join(sorted(_PRECISIONS))}"
        yield Problem("train.precision", f"found {train.precision!r}", fix)
    intervals = {"validation_interval": train.validation_interval}
    if train.checkpoint_interval_unit == "epoch":
        intervals["checkpoint_interval"] = train.checkpoint_interval
    for interval, value in intervals.items():
        if value > train.num_epochs:
            found = f"{value} is more than train.num_epochs {train.num_epochs}"
            fix = f"set it to at most {train.num_epochs}, or raise train.num_epochs"
            yield Problem(f"train.{interval}", found, fix)
    board = train.tensorboard
    if board.enabled and board.infrequent_logging_frequency > train.num_epochs:
        found = f"{board.infrequent_logging_frequency} is more than train.num_epochs {train.num_epochs}"
        fix = "lower it; only the first epoch is shown"
        yield Problem("train.tensorboard.infrequent_logging_frequency", found, fix, "warning")
    path = train.resume_training_checkpoint_path
    if path and not path.endswith((".pth", ".tlt", ".ckpt")):
        yield Problem("train.resume_training_checkpoint_path", f"found {path!r}", "give a .pth or .tlt checkpoint")


def check_weights(spec: ExperimentSpec) -> Iterator[Problem]:
    """Pretrained weights that should be on this machine, and are not. Nothing is fetched."""
    backbone, whole = spec.model.backbone.pretrained_backbone_path, spec.train.pretrained_model_path
    try:
        if whole:
            real_file(whole, where="train.pretrained_model_path")
        elif backbone and not (hub_id(backbone) or is_remote(backbone)):
            resolve_weights(backbone, key="model.backbone.pretrained_backbone_path")
    except UserError as error:
        yield from error.problems


def check_quantized(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    """``is_quantized``, which nothing here obeys yet."""
    if getattr(getattr(spec, action, None), "is_quantized", False):
        found = "true: quantized models are not opened by this version"
        yield Problem(f"{action}.is_quantized", found, "the checkpoint is opened as any other", "warning")


def monitors(spec: ExperimentSpec) -> dict[str, str]:
    """The keys that name a metric to choose the best checkpoint by, and what they name."""
    keys = {
        "train.checkpointer.monitor": spec.train.checkpointer.monitor,
        "train.optim.monitor_name": spec.train.optim.monitor_name,
    }
    return {key: name for key, name in keys.items() if name}


def check_export(spec: ExperimentSpec, size: tuple[int, int], size_says: str) -> Iterator[Problem]:
    """``size``: the dataset's images, ``(height, width)``; ``size_says`` ends the sentence "…, but "."""
    export, (height, width) = spec.export, size
    if export.input_channel != 3:
        yield Problem("export.input_channel", f"found {export.input_channel}", "these networks take 3 colour channels")
    if export.format != "onnx":
        yield Problem("export.format", f"found {export.format!r}", "only onnx can be written")
    if export.batch_size == 0:
        yield Problem("export.batch_size", "found 0", "-1 leaves the batch size open, 1 or more fixes it")
    if (export.input_height, export.input_width) != size:
        found = f"{export.input_height} x {export.input_width}, but {size_says}"
        fix = f"set export.input_height={height} export.input_width={width}; exporting the dataset's size"
        yield Problem("export.input_height, input_width", found, fix, "warning")
