"""Specs of TAO 5 and of TAO Deploy."""

import pytest

from changenet.classify.task import CLASSIFY
from changenet.old_specs import renamed
from fiducial.actions.perform import read_spec
from fiducial.errors import CheckpointError, SpecError
from fiducial.spec.compose import compose

DEPLOY = {
    "task": "classify",
    "results_dir": "r",
    "model": {"classify": {"diff_module": "learnable", "embed_dec": 30, "eval_margin": 0.3}},
    "dataset": {"classify": {"num_input": 8, "batch_size": 1, "image_width": 224, "image_height": 224}},
    "gen_trt_engine": {
        **{"gpu_id": 0, "onnx_file": "a.onnx", "trt_engine": "a.engine", "batch_size": -1, "verbose": True},
        "tensorrt": {"data_type": "FP32", "workspace_size": 1024, "opt_batch_size": 10, "max_batch_size": 10},
    },
    "evaluate": {"trt_engine": "a.engine", "checkpoint": "???"},
}


def composed(spec, action, *overrides):
    return compose(CLASSIFY.spec_model(), read_spec([CLASSIFY], spec, overrides), action=action)


def errors(spec, action, *overrides):
    made = composed(spec, action, *overrides)
    return [str(p) for p in CLASSIFY.check_spec(made.spec, action) if p.level == "error"]


def test_keys_of_tao_5(caplog):
    old = {
        "train": {"val_interval": 3},
        "dataset": {"classify": {"output_shape": [96, 160]}},
        "gen_trt_engine": {"input_channel": 3, "input_width": 160, "input_height": 96},
    }
    made = composed(old, "train")
    data = made.spec.dataset.classify
    assert (made.spec.train.validation_interval, data.image_height, data.image_width) == (3, 96, 160)
    assert "train.val_interval: read as train.validation_interval" in made.notices
    assert sum("the ONNX file says" in notice for notice in made.notices) == 3
    assert composed({}, "train", "train.val_interval=4").spec.train.validation_interval == 4


@pytest.mark.parametrize("shape", [3, None, "x", [1], [1, 2, 3], {"a": 1}])
def test_output_shape_that_is_none_is_left_to_validation(shape):
    tree = {"dataset": {"classify": {"output_shape": shape}}}
    assert renamed(tree) == tree
    with pytest.raises(SpecError, match=r"output_shape · unknown key"):
        composed(tree, "train")


@pytest.mark.parametrize("tree", [{}, {"dataset": 3}, {"dataset": {"classify": [1]}}, {"dataset": None}])
def test_other_trees_are_left_alone(tree):
    assert renamed(tree) == tree


def test_newer_keys_win():
    tree = renamed({"dataset": {"classify": {"output_shape": [1, 2], "image_width": 5}}})
    assert tree == {"dataset": {"classify": {"image_height": 1, "image_width": 5}}}


def test_specs_of_tao_deploy():
    assert errors(DEPLOY, "gen_trt_engine") == []
    assert errors(DEPLOY, "export") == []
    assert errors(DEPLOY, "evaluate", "dataset.classify.num_input=1") == []
    (found,) = errors(DEPLOY, "evaluate")
    assert "8 lights, but input_map has none" in found


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        *(({"trt_engine": "a.engine"}, "trt_engine"), ({"trt_engine": "a.engine", "checkpoint": ""}, "trt_engine")),
        *(({"trt_engine": "engine of another name"}, "trt_engine"), ({"checkpoint": "a.ENGINE"}, "checkpoint")),
        ({"checkpoint": "a.plan", "trt_engine": "b.engine"}, "checkpoint"),
    ],
)
def test_an_engine_alone(keys, named):
    from fiducial.actions.models import find_model
    from fiducial.actions.registry import actions_of

    made = composed({**DEPLOY, "evaluate": keys}, "evaluate")
    file = keys.get(named)
    with pytest.raises(CheckpointError, match=rf"evaluate\.{named} · no file .*/{file}"):
        find_model(CLASSIFY, made, actions_of([CLASSIFY])["evaluate"])


def test_a_misspelt_short_spelling_names_its_key():
    with pytest.raises(SpecError, match=r"automl\.algoritm · unknown key · did you mean automl\.automl_algorithm\?"):
        composed({"automl": {"algoritm": "bohb"}}, "train")
