"""What a search of each network leaves alone, and why."""

import pytest

from changenet.__main__ import TASKS
from fiducial.actions.perform import compose_for, known_action, read_spec
from fiducial.automl.space import search_space
from fiducial.errors import SpecError
from mal.task import MAL
from mlrecog.task import ML_RECOG

AUGMENT = "dataset.classify.augmentation_config"
LEARNABLE = {"model": {"classify": {"difference_module": "learnable"}}, "train": {"classify": {"loss": "ce"}}}


def space(tasks, tree, *overrides):
    source = read_spec(tasks, {"results_dir": "out", **tree}, overrides)
    task, composed = compose_for(tasks, known_action(tasks, "automl"), source, {}, record=False)
    found = search_space(task, composed.spec)
    return {d.path for d in found.dimensions}, found.left_out


@pytest.mark.parametrize(("task", "other"), [("classify", "segment"), ("segment", "classify")])
def test_the_other_task(task, other):
    searched, left_out = space(TASKS, {"task": task})
    assert not [key for key in searched if f".{other}." in key]
    assert (
        left_out[f"dataset.{other}.{'multi_scale_train' if other == 'segment' else 'fpratio_sampling'}"]
        == f"task is {task}"
    )


class TestClassify:
    def test_learnable_and_euclidean(self):
        learnable, _ = space(TASKS, {"task": "classify", **LEARNABLE}, "automl.metric=val_auroc")
        euclidean, _ = space(TASKS, {"task": "classify"}, "automl.metric=val_auroc")
        own = {"model.classify.learnable_difference_modules", "train.classify.cls_weight[1]"}
        assert own <= learnable
        assert not own & euclidean
        assert euclidean - learnable == {"model.classify.train_margin_euclid"}

    def test_what_changes_the_meaning_of_the_loss(self):
        searched, left_out = space(TASKS, {"task": "classify", **LEARNABLE})
        assert "train.classify.cls_weight[1]" not in searched
        assert "means something else" in left_out["train.classify.cls_weight[1]"]

    def test_the_margin_counts_where_the_metric_depends_on_it(self):
        assert "model.classify.eval_margin" in space(TASKS, {"task": "classify"}, "automl.metric=val_acc")[0]
        assert "model.classify.eval_margin" not in space(TASKS, {"task": "classify"}, "automl.metric=val_auroc")[0]
        for other, counts in (("val_acc", True), ("latency", False)):
            settings = {"metric": "val_auroc", "objectives": [{"metric": other, "scale": 1.0}]}
            found = space(TASKS, {"task": "classify", "automl": settings})[0]
            assert ("model.classify.eval_margin" in found) == counts

    def test_augmentations_that_are_off(self):
        off = (f"{AUGMENT}.augment=false", f"automl.pinned=[{AUGMENT}.augment]")
        assert not [key for key in space(TASKS, {"task": "classify"}, *off)[0] if key.startswith(AUGMENT)]
        flip = (f"{AUGMENT}.random_flip.enable=false", f"automl.pinned=[{AUGMENT}.random_flip.enable]")
        searched, left_out = space(TASKS, {"task": "classify"}, *flip)
        assert f"{AUGMENT}.random_flip.vflip_probability" in left_out
        assert f"{AUGMENT}.random_rotate.rotate_probability" in searched

    def test_a_pretrained_model_keeps_its_shape(self):
        given = "train.pretrained_model_path=model.pth"
        searched, _ = space(TASKS, {"task": "classify", **LEARNABLE}, "automl.metric=val_auroc", given)
        assert "model.classify.learnable_difference_modules" not in searched

    def test_momentum_is_sgds(self):
        assert "train.optim.momentum" not in space(TASKS, {"task": "classify"})[0]
        assert "train.optim.momentum" in space(TASKS, {"task": "classify"}, "train.optim.optim=sgd")[0]

    def test_what_a_searched_key_may_switch_on(self):
        both = ["model.classify.difference_module", "train.classify.loss", "train.optim.optim"]
        on = ["model.classify.learnable_difference_modules", "train.classify.cls_weight[1]", "train.optim.momentum"]
        settings = {"metric": "val_auroc", "automl_hyperparameters": [*both, *on]}
        assert space(TASKS, {"task": "classify", "automl": settings})[0] == {*both, *on}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("key", ["classify.loss", "segment.loss", "segment.focal_gamma"])
def test_losses_are_not_compared_with_others(key, beside):
    task = key.partition(".")[0]
    goal = {"metric": "val_acc", "objectives": [{"metric": "val_loss"}]} if beside else {"metric": "val_loss"}
    with pytest.raises(SpecError, match=f"{key} is not searched: val_loss means something else with each value"):
        space(TASKS, {"task": task, "automl": {**goal, "automl_hyperparameters": [f"train.{key}"]}})


def test_mlrecog():
    searched, _ = space([ML_RECOG], {})
    assert "train.optim.gamma" not in searched  # the steps are beyond the epochs
    assert not [key for key in searched if key.endswith("momentum")]
    searched, _ = space([ML_RECOG], {}, "train.optim.name=SGD", "train.train_trunk=false", "train.num_epochs=80")
    assert {"train.optim.gamma", "train.optim.embedder.momentum"} <= searched
    assert not [key for key in searched if key.startswith("train.optim.trunk")]
    switches = ["train.optim.name", "train.train_trunk"]
    on = ["train.optim.trunk.momentum", "train.optim.embedder.momentum"]
    wanted = {"automl": {"automl_hyperparameters": [*switches, *on]}}
    assert space([ML_RECOG], wanted, "train.train_trunk=false")[0] == {*switches, *on}


def test_mal():
    assert space([MAL], {})[0] == {"train.lr", "train.wd"}


@pytest.mark.parametrize(
    ("task", "key", "options", "wrong"),
    [
        (MAL, "model.arch", ["vit-deit-tiny/8", "vit-mae-base/16"], "vit-deit-tny/8"),
        (ML_RECOG, "train.optim.name", ["Adam", "AdamW"], "Adamm"),
    ],
)
def test_a_key_may_have_more_than_the_values_that_tao_names(task, key, options, wrong):
    def searched(*options):
        ranges = {key: {"valid_options": list(options)}}
        return space([task], {"automl": {"automl_hyperparameters": [key], "custom_param_ranges": ranges}})[0]

    assert searched(*options) == {key}
    with pytest.raises(SpecError, match=rf"automl\.custom_param_ranges\.{key}\.valid_options · .*{wrong}"):
        searched(*options, wrong)
