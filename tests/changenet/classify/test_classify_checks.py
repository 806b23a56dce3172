"""Every rule of a classify spec: one that trips it, and the demo spec that trips none."""

from dataclasses import replace

import pytest

from changenet.classify.checks import check_spec, effective_margin
from fiducial.backbones.names import BACKBONES

DATA, MODEL = "dataset__classify__", "model__classify__"
VIT = {"type": "vit_large_nvdinov2"}
FOUR = {"LowAngleLight": 0, "SolderLight": 1, "UniformLight": 2, "WhiteLight": 3}
SQUARE = {f"{DATA}image_width": 224, f"{DATA}image_height": 224, f"{DATA}input_map": None, f"{DATA}num_input": 1}
EUCLIDEAN = {f"{MODEL}difference_module": "euclidean", "train__classify": {"loss": "contrastive"}}

CASES = [
    # action, changes, key, part of what was found, part of the fix, level
    ("train", {f"{DATA}num_input": 3}, "dataset.classify.num_input", "input_map has 2", "set num_input to 2", "error"),
    ("train", {f"{DATA}input_map": None}, "dataset.classify.num_input", "has none", "set num_input to 1", "error"),
    (
        *("train", {f"{DATA}input_map": {"WhiteLight": 1, "SolderLight": 0}}, "dataset.classify.input_map"),
        *("order WhiteLight, SolderLight", "order of their indices", "warning"),
    ),
    (
        *("train", {f"{DATA}concat_type": "grid", f"{DATA}grid_map": {"x": 2, "y": 2}}, "dataset.classify.grid_map"),
        *("4 places for 2 lights", "x times y", "error"),
    ),
    (
        *("train", {f"{DATA}concat_type": "grid", f"{DATA}grid_map": {"x": 1, "y": 1}}, "dataset.classify.grid_map"),
        *("WhiteLight is not used", "x times y", "warning"),
    ),
    (
        *("train", {f"{DATA}concat_type": "grid"}, "dataset.classify.grid_map"),
        *("not set", "set x (columns) and y (rows)", "error"),
    ),
    (
        "train",
        {f"{DATA}concat_type": "grid", f"{DATA}input_map": {"A": 0, "B": 1, "C": 2}, f"{DATA}num_input": 3},
        "dataset.classify.concat_type",
        *("laid out as linear", "even number", "warning"),
    ),
    ("train", {f"{DATA}image_ext": "png"}, "dataset.classify.image_ext", "no dot", "write .png", "warning"),
    ("train", {f"{DATA}image_width": 40}, "dataset.classify.image_height, image_width", "64 x 40", "of 16", "error"),
    (
        *("train", {"model__backbone": VIT, f"{DATA}image_width": 64}, "dataset.classify.image_height, image_width"),
        *("64 x 64", None, None),
    ),
    (
        *("train", {"model__backbone__feat_downsample": True}, "model.backbone.feat_downsample"),
        *("768", "set it to false", "error"),
    ),
    (
        *("train", {"model__decode_head__in_index": [0, 1, 3, 2]}, "model.decode_head.in_index"),
        *("[0, 1, 3, 2]", "all four maps", "error"),
    ),
    (
        *("train", {f"{DATA}num_golden": 2}, "dataset.classify.num_golden"),
        *("fan_tiny", "C-RADIO, NVDINOv2 or DINOv3", "error"),
    ),
    (
        "train",
        {
            f"{DATA}num_golden": 2,
            "model__backbone": VIT,
            **SQUARE,
            f"{DATA}image_width": 256,
            f"{DATA}image_height": 256,
        },
        *("dataset.classify.num_golden", "256 x 256", "multiples of 224", "error"),
    ),
    (
        *(
            "train",
            {f"{DATA}num_golden": 2, "model__backbone": VIT, **SQUARE, **EUCLIDEAN},
            "dataset.classify.num_golden",
        ),
        *("euclidean", "learnable", "error"),
    ),
    (
        *("train", {f"{MODEL}embed_dec": 60_000}, "model.classify.embed_dec"),
        *("123 M weights (2.0 GB in training)", "embed_dim", "warning"),
    ),
    ("evaluate", {f"{MODEL}eval_margin": 2.0}, "model.classify.eval_margin", "between 0 and 1", "using 0.5", "warning"),
    (
        *("train", {"train__classify__loss": "contrastive"}, "train.classify.loss"),
        *("'contrastive' with model.classify.difference_module 'learnable'", "ce trains learnable", "error"),
    ),
    (
        *("train", {f"{MODEL}difference_module": "euclidean"}, "train.classify.loss"),
        *("'ce' with", "contrastive trains euclidean", "error"),
    ),
    (
        *("train", {"train__classify__cls_weight": [1.0]}, "train.classify.cls_weight"),
        *("1 weights for num_classes 2", "one weight per class", "error"),
    ),
    ("train", {f"{DATA}batch_size": 1}, "dataset.classify.batch_size", "found 1", "at least 2", "error"),
    ("train", {f"{DATA}fpratio_sampling": 0}, "dataset.classify.fpratio_sampling", "no defect", "0.1", "warning"),
    (
        *("train", {"model__backbone__freeze_backbone": True}, "model.backbone.freeze_backbone"),
        *("model.backbone.pretrained_backbone_path is not set", "give weights", "error"),
    ),
    ("train", {"train__precision": "8-true"}, "train.precision", "8-true", "bf16-mixed", "error"),
    (
        "train",
        {"train__tensorboard": {"enabled": True, "infrequent_logging_frequency": 5}},
        *("train.tensorboard.infrequent_logging_frequency", "5 is more than train.num_epochs 2", "lower", "warning"),
    ),
    (
        *("train", {"train__checkpointer": {"monitor": "val_accuracy"}}, "train.checkpointer.monitor"),
        *("'val_accuracy'", "val_loss, val_far", "error"),
    ),
    (
        *("train", {"train__optim__monitor_name": "test_acc"}, "train.optim.monitor_name"),
        *("'test_acc'", "that training logs", "error"),
    ),
    (
        *("train", {f"{DATA}validation_dataset": {}}, "train.optim.monitor_name"),
        *("without validation data", "train_loss", "warning"),
    ),
    ("export", {"export": {"input_channel": 1}}, "export.input_channel", "found 1", "3 colour", "error"),
    (
        "export",
        {
            "export": {"opset_version": 22, "deformable_attention": "plugin"},
            "model__backbone__type": "c_radio_v2_vit_base_patch16_224",
        },
        *("export.opset_version", "22: deformable attention as plugin", "set 20", "error"),
    ),
    ("export", {"export": {"format": "xdl"}}, "export.format", "xdl", "onnx", "error"),
    (
        *("export", {"export": {"input_height": 224}}, "export.input_height, input_width"),
        *("the dataset composes 64 x 32", "export.input_height=64 export.input_width=32", "warning"),
    ),
]


@pytest.mark.parametrize(("action", "changes", "key", "found", "fix", "level"), CASES)
def test_rule(make_spec, action, changes, key, found, fix, level):
    problems = [problem for problem in check_spec(make_spec(**changes), action) if problem.where == key]
    if level is None:
        assert problems == []
        return
    assert len(problems) == 1
    assert found in problems[0].found
    assert fix in problems[0].fix
    assert problems[0].level == level


@pytest.mark.parametrize("action", ["train", "evaluate", "inference"])
def test_a_good_spec_has_no_problems(make_spec, action):
    assert list(check_spec(make_spec(), action)) == []


def test_a_good_export_has_no_problems(make_spec):
    assert list(check_spec(make_spec(export={"input_height": 64, "input_width": 32}), "export")) == []


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_training_keys_do_not_matter_elsewhere(make_spec, action):
    spec = make_spec(train__classify={"loss": "contrastive", "cls_weight": [1.0]}, train__checkpoint_interval=500)
    assert list(check_spec(spec, action)) == []


def test_any_reported_metric_can_be_monitored(make_spec):
    for name in ("val_loss", "train_loss", "val_acc", "val_far", "val_auroc", "val_recall/C0402", "train_acc"):
        assert list(check_spec(make_spec(train__checkpointer={"monitor": name}), "train")) == []


def test_steps_are_not_compared_with_epochs(make_spec):
    spec = make_spec(train__checkpoint_interval=500, train__checkpoint_interval_unit="step")
    assert list(check_spec(spec, "train")) == []


@pytest.mark.parametrize(
    ("difference", "margin", "compat", "effective"),
    [
        ("learnable", 0.3, "off", 0.3),
        ("learnable", 2.0, "off", 0.5),
        ("learnable", 2.0, "tao", 2.0),
        ("euclidean", 2.0, "off", 2.0),
    ],
)
def test_effective_margin(make_spec, difference, margin, compat, effective):
    spec = make_spec(model__classify={"difference_module": difference, "eval_margin": margin}, compat=compat)
    assert effective_margin(spec) == effective


def test_wrong_strides_are_mended_with_a_word(make_spec):
    spec = make_spec(model__decode_head__feature_strides=[4, 8, 16, 32])
    (problem,) = check_spec(spec, "train")
    assert problem.level == "warning"
    assert "[4, 8, 16, 16]" in problem.fix


def test_square_inputs_where_a_backbone_needs_them(make_spec, monkeypatch):
    square = replace(BACKBONES["fan_tiny_8_p4_hybrid"], square=True)
    monkeypatch.setitem(BACKBONES, square.name, square)
    (problem,) = check_spec(make_spec(), "train")
    assert "64 x 32" in problem.found
    assert "use concat_type grid so that the composed image is square" in problem.fix


def test_an_embedding_has_no_deformable_attention(make_spec):
    model = {"backbone": {"type": "c_radio_v2_vit_base_patch16_224"}, "classify": {"difference_module": "euclidean"}}
    export = {"opset_version": 22, "deformable_attention": "plugin"}
    problems = list(check_spec(make_spec(model=model, export=export), "export"))
    assert "export.opset_version" not in {problem.where for problem in problems}
