"""The rules on a spec that both tasks have. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from changenet.kept_features import check_feature_cache
from fiducial.backbones.names import BACKBONES
from fiducial.deploy.opsets import check_opset, opsets
from fiducial.errors import Problem
from fiducial.training.checks import check_frozen, check_precision, check_tensorboard

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec


def check_training(spec: ExperimentSpec) -> Iterator[Problem]:
    """Weights to freeze, number format, pictures, what is kept of a frozen backbone."""
    train = spec.train
    yield from check_frozen(spec.model.backbone, train.pretrained_model_path)
    yield from check_precision(train.precision)
    yield from check_tensorboard(train.tensorboard, train.num_epochs)
    yield from check_feature_cache(spec)


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
    if export.preprocessing and export.serialize_nvdsinfer:
        found = "true, with export.serialize_nvdsinfer: DeepStream normalises by itself, and gives no pixels"
        yield Problem("export.preprocessing", found, "export twice, for either use")
    yield from _check_formulation(spec)
    if (export.input_height, export.input_width) != size:
        found = f"{export.input_height} x {export.input_width}, but {size_says}"
        fix = f"set export.input_height={height} export.input_width={width}; exporting the dataset's size"
        yield Problem("export.input_height, input_width", found, fix, "warning")


def _check_formulation(spec: ExperimentSpec) -> Iterator[Problem]:
    """The narrower choice of operator sets where deformable attention is not written as gathers."""
    backbone = BACKBONES.get(spec.model.backbone.type)
    is_deformable = (
        backbone is not None
        and backbone.family != "FAN"
        and (spec.task == "segment" or spec.model.classify.difference_module == "learnable")
    )
    written_as: str = spec.export.deformable_attention
    if spec.compat == "tao" and written_as == "gather":
        written_as = "plugin"  # unless the user asks for gathers, which what is checked here cannot tell
    if is_deformable and spec.export.opset_version in opsets():
        yield from check_opset(spec.export.opset_version, written_as)
