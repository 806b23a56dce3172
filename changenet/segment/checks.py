"""What can be said about a segment spec before anything heavy is loaded: the rules that span keys. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from changenet.checks import check_export, check_training, monitors
from changenet.segment.metric_names import METRICS
from fiducial.backbones.names import BACKBONES
from fiducial.errors import Problem

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

_FAN_STRIDES = [4, 8, 16, 16]
"""The default of ``model.decode_head.feature_strides``."""


def check_spec(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    """Every problem of a segment spec for an action."""
    yield from _check_model(spec)
    yield from _check_data(spec)
    if action == "train":
        yield from _check_training(spec)
        yield from check_training(spec)
        yield from _check_monitors(spec)
    if action == "export":
        side = spec.dataset.segment.img_size
        yield from check_export(spec, (side, side), f"dataset.segment.img_size is {side}")


def multi_scale_train(spec: ExperimentSpec) -> bool:
    """Whether the loss covers all scales. TAO's code never does, whatever the key says."""
    return spec.dataset.segment.multi_scale_train and spec.compat == "off"


def multi_scale_infer(spec: ExperimentSpec) -> bool:
    """Whether results are averaged over all scales. TAO's code never does so."""
    return spec.dataset.segment.multi_scale_infer and spec.compat == "off"


def _check_model(spec: ExperimentSpec) -> Iterator[Problem]:
    backbone, head, data = spec.model.backbone, spec.model.decode_head, spec.dataset.segment
    info = BACKBONES.get(backbone.type)
    if info is None:
        found = f"unknown backbone {backbone.type!r}"
        yield Problem("model.backbone.type", found, f"use one of: {', '.join(BACKBONES)}")
        return
    if data.img_size % info.multiple:
        low = data.img_size // info.multiple * info.multiple
        nearest = f"{low} or {low + info.multiple}" if low else str(info.multiple)
        found = f"{data.img_size} is no multiple of {info.multiple}, which {info.name} needs"
        yield Problem("dataset.segment.img_size", found, f"set {nearest}")
    if backbone.feat_downsample:
        found = "true: the last map gets 768 channels that no segment decoder takes"
        yield Problem("model.backbone.feat_downsample", found, "set it to false")
    if tuple(head.feature_strides) != info.strides:
        found = f"{head.feature_strides} does not fit {info.name}"
        level = "warning" if head.feature_strides == _FAN_STRIDES else "error"
        fix = f"set {list(info.strides)}" + ("; using these" if level == "warning" else "")
        yield Problem("model.decode_head.feature_strides", found, fix, level)  # type: ignore[arg-type]
    if head.in_index != [0, 1, 2, 3]:
        fix = "segment takes all four maps: [0, 1, 2, 3]"
        yield Problem("model.decode_head.in_index", f"found {head.in_index}", fix)


def _check_data(spec: ExperimentSpec) -> Iterator[Problem]:
    data = spec.dataset.segment
    if data.label_transform not in ("norm", "None"):
        found = f"{data.label_transform!r} counts as None: masks hold class numbers"
        yield Problem("dataset.segment.label_transform", found, "write norm or None", "warning")
    if data.label_transform == "norm" and data.num_classes > 2:
        found = f"norm gives the classes 0 and 1, but num_classes is {data.num_classes}: the others will not be learnt"
        fix = "for masks of class numbers set label_transform: None"
        yield Problem("dataset.segment.label_transform", found, fix, "warning")
    if data.color_map is not None:
        classes = {str(k) for k in range(data.num_classes)}
        if set(data.color_map) != classes:
            found = f"colours of {', '.join(data.color_map)} for num_classes {data.num_classes}"
            fix = f"give one colour for each of 0 .. {data.num_classes - 1}"
            yield Problem("dataset.segment.color_map", found, fix)
    raster = data.raster
    if raster.scaling is not None and raster.percentiles is not None:
        yield Problem("dataset.segment.raster", "both scaling and percentiles are set", "set one of the two")
    for name, limits in (("scaling", raster.scaling), ("percentiles", raster.percentiles)):
        if limits is not None and not limits[0] < limits[1]:
            yield Problem(f"dataset.segment.raster.{name}", f"found {limits}", "the first must be the lower one")
    if raster.percentiles is not None and not (raster.percentiles[0] >= 0 and raster.percentiles[1] <= 100):
        yield Problem("dataset.segment.raster.percentiles", f"found {raster.percentiles}", "they lie in 0 .. 100")
    if raster.bands is not None and len(raster.bands) == 2:
        yield Problem("dataset.segment.raster.bands", "two bands", "name one, or three")
    if spec.compat == "tao" and data.multi_scale_infer:
        found = "compat: tao predicts on the finest scale alone, as TAO's code does"
        yield Problem("dataset.segment.multi_scale_infer", found, "compat: off averages all scales", "warning")
    if data.windows.enable and round(data.windows.overlap * data.img_size) >= data.img_size:
        yield Problem("dataset.segment.windows.overlap", f"found {data.windows.overlap}", "set a smaller part")


def _check_training(spec: ExperimentSpec) -> Iterator[Problem]:
    train, data = spec.train, spec.dataset.segment
    options = train.segment
    if options.class_weights is not None:
        where = "train.segment.class_weights"
        if len(options.class_weights) != data.num_classes:
            found = f"{len(options.class_weights)} weights for num_classes {data.num_classes}"
            yield Problem(where, found, "give one weight per class")
        elif not any(options.class_weights):
            yield Problem(where, "all weights are 0", "give one class a weight above 0")
        if options.loss == "mmiou":
            yield Problem(where, "loss mmiou does not use them", "remove them, or use another loss", "warning")
    if multi_scale_train(spec) and not any(options.weights):
        yield Problem("train.segment.weights", "all weights are 0", "give one scale a weight above 0")
    if spec.compat == "tao" and data.multi_scale_train:
        found = "compat: tao trains on the finest scale alone, as TAO's code does"
        yield Problem("dataset.segment.multi_scale_train", found, "compat: off uses all scales", "warning")


def _check_monitors(spec: ExperimentSpec) -> Iterator[Problem]:
    for where, name in monitors(spec).items():
        metric = METRICS.find(name, ("train", "val"))
        number = metric.class_number(name) if metric else None
        if metric is None or (number is not None and number >= spec.dataset.segment.num_classes):
            fix = "use a metric that training logs: val_loss, val_miou, val_mf1, val_iou_1, val_F1_1, …"
            yield Problem(where, f"unknown metric {name!r}", fix)
