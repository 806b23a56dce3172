"""The training loop's module: which parts are in which mode."""

import pytest

import mlrecog
from mlrecog.lightning import RecogModule


def module(**arguments):
    return RecogModule(mlrecog.build_recognizer("fan_tiny", feat_dim=4, image_size=(32, 32)), **arguments)


@pytest.mark.parametrize(("still", "trunk"), [(True, False), (False, True)])
def test_modes_of_frozen_parts(still, trunk):
    found = module(frozen=("trunk",), still=still)
    for again in (found, found.eval().train()):
        assert (again.model.trunk.training, again.model.embedder.training) == (trunk, True)
    assert not any(weight.requires_grad for weight in found.model.trunk.parameters())
    assert not found.eval().model.embedder.training


def test_all_parts_are_trained_unless_frozen():
    found = module().train()
    assert found.model.trunk.training
    assert all(weight.requires_grad for weight in found.model.parameters())


@pytest.mark.parametrize(("compat", "still"), [("off", True), ("tao", False)])
def test_tao_lets_batch_norms_of_a_frozen_part_go_on(make_spec, tmp_path, compat, still):
    from mlrecog.task import ML_RECOG

    spec = make_spec(tmp_path, compat=compat, train__train_trunk=False)
    made = ML_RECOG.runtime(spec).module(pretrained=False)
    assert (made.frozen, made.still) == (("trunk",), still)
