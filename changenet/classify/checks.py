"""What can be said about a classify spec before anything heavy is loaded: the rules that span keys. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from changenet.checks import check_export, check_training, monitors
from changenet.classify.metric_names import METRICS
from changenet.classify.rows import Layout
from fiducial.backbones.names import BACKBONES, BackboneInfo
from fiducial.errors import Problem

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

LOSS_OF = {"learnable": "ce", "euclidean": "contrastive"}
"""The loss that each difference module trains with."""
DEFAULT_SCORE_MARGIN = 0.5
"""Margin for probabilities where the spec leaves the one for distances."""
_WINDOW = 7  # cells of the attention windows of the multi-golden decoder
_LARGE_CLASSIFIER = 100_000_000
"""Weights of one layer worth a word: with gradients and AdamW's two averages 1.6 GB."""


def check_spec(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    """Every problem of a classify spec for an action."""
    yield from _check_lights(spec, action)
    yield from _check_model(spec)
    yield from _check_margin(spec, action)
    if action == "train":
        yield from _check_training(spec)
        yield from check_training(spec)
        yield from _check_monitors(spec)
    if action == "export":
        height, width = Layout.of(spec.dataset.classify).composed
        yield from check_export(spec, (height, width), f"the dataset composes {height} x {width}")


def effective_margin(spec: ExperimentSpec) -> float:
    """The margin of decisions: ``eval_margin``, or 0.5 where that is for distances and the scores are probabilities."""
    margin = spec.model.classify.eval_margin
    if spec.model.classify.difference_module == "learnable" and margin >= 1 and spec.compat == "off":
        return DEFAULT_SCORE_MARGIN
    return margin


def validates(spec: ExperimentSpec) -> bool:
    """Whether the spec names validation pairs."""
    files = spec.dataset.classify.validation_dataset
    return bool(files.csv_path and files.images_dir)


def _check_lights(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    data = spec.dataset.classify
    lights = data.input_map or {}
    wanted = len(lights) or 1
    if data.num_input != wanted and action not in ("export", "quantize", "gen_trt_engine"):  # these read no images
        found = f"{data.num_input} lights, but input_map has {len(lights) or 'none'}"
        yield Problem(
            "dataset.classify.num_input", found, f"set num_input to {wanted}, or list the lights in input_map"
        )
    if list(lights.values()) != sorted(lights.values()):
        found = f"lights are joined in the order {', '.join(lights)}, their indices say another"
        yield Problem("dataset.classify.input_map", found, "write the keys in the order of their indices", "warning")
    if data.concat_type == "grid":
        cells = (data.grid_map or {}).get("x", 0) * (data.grid_map or {}).get("y", 0)
        if len(lights) % 2:
            fix = "use an even number of lights, or concat_type: linear"
            found = f"grid with {wanted} light(s) is laid out as linear"
            yield Problem("dataset.classify.concat_type", found, fix, "warning")
        elif not cells:
            yield Problem("dataset.classify.grid_map", "not set for concat_type grid", "set x (columns) and y (rows)")
        elif cells > len(lights):
            found = f"{cells} places for {len(lights)} lights"
            yield Problem("dataset.classify.grid_map", found, "make x times y the number of lights")
        elif cells < len(lights):
            found = f"{cells} places: {', '.join(list(lights)[cells:])} is not used"
            yield Problem("dataset.classify.grid_map", found, "make x times y the number of lights", "warning")
    if not data.image_ext.startswith("."):
        found = f"{data.image_ext!r} has no dot"
        yield Problem("dataset.classify.image_ext", found, f"write .{data.image_ext} if that is the suffix", "warning")


def _check_model(spec: ExperimentSpec) -> Iterator[Problem]:
    backbone, model, data = spec.model.backbone, spec.model.classify, spec.dataset.classify
    info = BACKBONES.get(backbone.type)
    if info is None:
        found = f"unknown backbone {backbone.type!r}"
        yield Problem("model.backbone.type", found, f"use one of: {', '.join(BACKBONES)}")
        return
    yield from _check_size(info, Layout.of(data), model.difference_module)
    if backbone.feat_downsample:
        found = "true: the last map gets 768 channels that no classify decoder takes"
        yield Problem("model.backbone.feat_downsample", found, "set it to false")
    strides = spec.model.decode_head.feature_strides
    if tuple(strides) != info.strides:
        found = f"{strides} does not fit {info.name}; using {list(info.strides)}"
        yield Problem("model.decode_head.feature_strides", found, f"set {list(info.strides)}", "warning")
    if spec.model.decode_head.in_index != [0, 1, 2, 3]:
        found = f"found {spec.model.decode_head.in_index}"
        yield Problem("model.decode_head.in_index", found, "classify takes all four maps: [0, 1, 2, 3]")
    if data.num_golden > 1:
        yield from _check_goldens(info, spec)
    yield from _check_classifier(spec)


def _check_size(info: BackboneInfo, layout: Layout, difference: str) -> Iterator[Problem]:
    height, width = layout.composed
    multiple = info.multiple if difference == "learnable" else info.embedding_multiple
    where = "dataset.classify.image_height, image_width"
    composed = f"the composed image is {height} x {width} (height x width)"
    if height % multiple or width % multiple:
        yield Problem(where, composed, f"{info.name} needs multiples of {multiple}")
    if info.square and height != width:
        fix = f"{info.name} takes square images only: use concat_type grid so that the composed image is square"
        yield Problem(where, composed, fix)


def _check_classifier(spec: ExperimentSpec) -> Iterator[Problem]:
    """The first dense layer sees every pixel of the finest map: the part of the network that outgrows the rest."""
    if spec.model.classify.difference_module != "learnable":
        return
    height, width = Layout.of(spec.dataset.classify).composed
    weights = spec.model.decode_head.decoder_params.embed_dim * (height // 4) * (width // 4)
    weights *= spec.model.classify.embed_dec
    if weights > _LARGE_CLASSIFIER:
        found = (
            f"the classifier's first layer has {weights / 1e6:.0f} M weights ({weights * 16 / 1e9:.1f} GB in training)"
        )
        fix = "lower it, decode_head.decoder_params.embed_dim or the image size if memory runs out"
        yield Problem("model.classify.embed_dec", found, fix, "warning")


def _check_goldens(info: BackboneInfo, spec: ExperimentSpec) -> Iterator[Problem]:
    where = "dataset.classify.num_golden"
    found = f"{spec.dataset.classify.num_golden} goldens"
    if spec.model.classify.difference_module == "euclidean":
        yield Problem(where, f"{found} with difference_module euclidean", "set difference_module: learnable")
    if info.strides[-1] != 32:
        yield Problem(where, f"{found} with {info.name}", "several goldens need a C-RADIO, NVDINOv2 or DINOv3")
        return
    height, width = Layout.of(spec.dataset.classify).composed
    if (height // 32) % _WINDOW or (width // 32) % _WINDOW:
        found = f"{found}, the composed image is {height} x {width}"
        yield Problem(where, found, f"several goldens need multiples of {32 * _WINDOW}")


def _check_margin(spec: ExperimentSpec, action: str) -> Iterator[Problem]:
    model = spec.model.classify
    if model.difference_module != "learnable" or model.eval_margin < 1 or spec.compat == "tao":
        return
    found = f"{model.eval_margin:g}, but scores of difference_module learnable lie between 0 and 1"
    fix = f"set a margin below 1 (evaluate's report suggests one); using {DEFAULT_SCORE_MARGIN}"
    if action in ("train", "evaluate", "inference"):
        yield Problem("model.classify.eval_margin", found, fix, "warning")


def _check_training(spec: ExperimentSpec) -> Iterator[Problem]:
    train, data, model = spec.train, spec.dataset.classify, spec.model
    difference = model.classify.difference_module
    if train.classify.loss != LOSS_OF[difference]:
        found = f"loss {train.classify.loss!r} with model.classify.difference_module {difference!r}"
        fix = "ce trains learnable, contrastive trains euclidean: change one of the two keys"
        yield Problem("train.classify.loss", found, fix)
    if difference == "learnable" and len(train.classify.cls_weight) != data.num_classes:
        found = f"{len(train.classify.cls_weight)} weights for num_classes {data.num_classes}"
        yield Problem("train.classify.cls_weight", found, "give one weight per class")
    if data.batch_size < 2:
        fix = "training needs at least 2 (batch statistics)"
        yield Problem("dataset.classify.batch_size", f"found {data.batch_size}", fix)
    if not data.fpratio_sampling:
        yield Problem("dataset.classify.fpratio_sampling", "0: no defect is ever drawn", "set 0.1 to 0.5", "warning")


def _check_monitors(spec: ExperimentSpec) -> Iterator[Problem]:
    for key, name in monitors(spec).items():
        if METRICS.find(name, ("train", "val")) is None:
            fix = "use a metric that training logs: val_loss, val_far, val_auroc, val_acc, … (docs/classify.md)"
            yield Problem(key, f"unknown metric {name!r}", fix)
        elif name.startswith("val_") and not validates(spec):
            fix = "give dataset.classify.validation_dataset, or watch train_loss"
            yield Problem(key, f"{name} without validation data: no best checkpoint is kept", fix, "warning")
