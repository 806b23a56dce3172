"""Rules that span spec keys."""

import pytest
from makers import with_changes

from changenet.config import ExperimentSpec
from changenet.segment.checks import check_spec, multi_scale_infer, multi_scale_train


def spec_of(**changes):
    tree = {"task": "segment", "dataset": {"segment": {"img_size": 64}}}
    tree["export"] = {"input_width": 64, "input_height": 64}
    return ExperimentSpec.model_validate(with_changes(tree, changes))


def problems(action="train", **changes):
    return list(check_spec(spec_of(**changes), action))


@pytest.mark.parametrize("action", ["train", "evaluate", "inference", "export"])
def test_a_plain_spec_is_fine(action):
    assert problems(action) == []


VIT = {"model__backbone__type": "vit_large_nvdinov2"}


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("model.backbone.type", {"model__backbone__type": "resnet_50"}),
        ("dataset.segment.img_size", {"dataset__segment__img_size": 250}),
        ("dataset.segment.img_size", {**VIT, "dataset__segment__img_size": 240}),
        ("model.backbone.feat_downsample", {"model__backbone__feat_downsample": True}),
        ("model.decode_head.feature_strides", {"model__decode_head__feature_strides": [4, 8, 16, 32]}),
        ("model.decode_head.in_index", {"model__decode_head__in_index": [0, 1, 2]}),
        ("dataset.segment.color_map", {"dataset__segment__color_map": {0: [0, 0, 0]}}),
        ("dataset.segment.raster.scaling", {"dataset__segment__raster": {"scaling": [5, 5]}}),
        ("dataset.segment.raster.percentiles", {"dataset__segment__raster": {"percentiles": [2, 101]}}),
        ("dataset.segment.raster.bands", {"dataset__segment__raster": {"bands": [1, 2]}}),
        ("train.segment.class_weights", {"train__segment__class_weights": [1.0]}),
        ("train.segment.class_weights", {"train__segment__class_weights": [0.0, 0.0]}),
        ("train.segment.weights", {"train__segment__weights": [0.0] * 5}),
        ("model.backbone.freeze_backbone", {"model__backbone__freeze_backbone": True}),
        ("train.precision", {"train__precision": "32bit"}),
        ("train.checkpointer.monitor", {"train__checkpointer": {"monitor": "val_fscore"}}),
        ("train.checkpointer.monitor", {"train__checkpointer": {"monitor": "val_iou_2"}}),
        ("train.optim.monitor_name", {"train__optim__monitor_name": "test_miou"}),
    ],
)
def test_errors_name_their_key(where, changes):
    found = problems(**changes)
    assert [p.where for p in found if p.level == "error"] == [where]


@pytest.mark.parametrize("name", ["val_loss", "val_miou", "miou", "val_iou_1", "F1_0"])
def test_metrics_that_training_logs_can_be_monitored(name):
    assert problems(train__checkpointer={"monitor": name}) == []


def test_nearest_sizes_are_suggested():
    assert problems(dataset__segment__img_size=250)[0].fix == "set 240 or 256"


def test_default_strides_of_a_vit_are_replaced_with_a_warning():
    (found,) = problems(**VIT)
    assert (found.level, found.where) == ("warning", "model.decode_head.feature_strides")
    assert "[4, 8, 16, 32]" in found.fix


def test_more_classes_than_norm_gives_are_a_warning():  # TAO trains them, and such checkpoints must go on working
    (found,) = problems(dataset__segment__num_classes=3)
    assert (found.level, found.where) == ("warning", "dataset.segment.label_transform")


@pytest.mark.parametrize("precision", ["16-mixed", "bf16", "16", "32-true"])
def test_precisions_of_lightning(precision):
    assert problems(train__precision=precision) == []


def test_another_export_size_is_a_warning():
    found = problems("export", export={"input_width": 512, "serialize_nvdsinfer": True})
    assert [p.level for p in found] == ["warning"]


@pytest.mark.parametrize(
    ("changes", "opset", "found"),
    [
        (VIT, 12, None),
        (VIT, 25, None),
        (
            {**VIT, "export__deformable_attention": "grid_sample"},
            15,
            "as grid_sample is written in ONNX operator set 16",
        ),
        ({**VIT, "export__deformable_attention": "grid_sample"}, 16, None),
        ({**VIT, "export__deformable_attention": "plugin"}, 21, "as plugin is written in ONNX operator set 12 to 20"),
        ({**VIT, "compat": "tao"}, 21, "as plugin"),  # what TAO writes there
        ({**VIT, "compat": "tao"}, 17, None),
        ({"export__deformable_attention": "grid_sample"}, 15, None),  # FAN has no deformable attention
        ({**VIT, "export__deformable_attention": "plugin"}, 99, None),  # said for every network
    ],
)
def test_operator_sets_of_deformable_attention(changes, opset, found):
    texts = [p.found for p in problems("export", **changes, export__opset_version=opset) if "opset" in p.where]
    assert len(texts) == (found is not None)
    assert all(found in text for text in texts)


def test_other_transforms_count_as_class_numbers():
    assert [p.level for p in problems(dataset__segment__label_transform="ids")] == ["warning"]
    assert problems(dataset__segment__label_transform=None) == []


class TestScales:
    def test_train_on_all_scales_unless_off_or_tao(self):
        assert multi_scale_train(spec_of())
        assert not multi_scale_train(spec_of(dataset__segment__multi_scale_train=False))
        assert not multi_scale_train(spec_of(compat="tao"))

    def test_infer_on_the_finest_unless_asked(self):
        wanted = {"dataset__segment__multi_scale_infer": True}
        assert not multi_scale_infer(spec_of())
        assert multi_scale_infer(spec_of(**wanted))
        assert not multi_scale_infer(spec_of(compat="tao", **wanted))

    def test_tao_says_that_it_uses_one(self):
        (found,) = problems(compat="tao")
        assert (found.level, found.where) == ("warning", "dataset.segment.multi_scale_train")
        (found,) = problems("evaluate", compat="tao", dataset__segment__multi_scale_infer=True)
        assert (found.level, found.where) == ("warning", "dataset.segment.multi_scale_infer")
