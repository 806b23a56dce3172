"""A C-RADIO network from training to a loaded model, with the flags that TAO's templates set."""

import dataclasses

import pytest
import torch

from changenet import load_inspector, run
from fiducial.backbones import names, radio

NAME = "c_radio_v3_vit_base_patch16_reg4_dinov2"
WIDTH = 32


@pytest.fixture
def _tiny(monkeypatch):
    """The backbone with four blocks of 32 channels, under its own name."""
    monkeypatch.setattr(radio, "GRID", 6)
    shape = dataclasses.replace(radio.VARIANTS[NAME], dim=WIDTH, depth=4, heads=4)
    monkeypatch.setitem(radio.VARIANTS, NAME, shape)
    info = dataclasses.replace(names.BACKBONES[NAME], channels=(WIDTH,) * 4, depth=4, embedding_dim=3 * WIDTH)
    monkeypatch.setitem(names.BACKBONES, NAME, info)


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(("difference", "loss"), [("euclidean", "contrastive"), ("learnable", "ce")])
def test_trained_evaluated_and_loaded(make_spec_tree, pair_data, tmp_path, difference, loss):
    spec = make_spec_tree(
        pair_data,
        tmp_path,
        model__backbone__type=NAME,
        model__decode_head__feature_strides=[4, 8, 16, 32],
        model__decode_head__use_summary_token=True,
        model__classify__difference_module=difference,
        train__classify__loss=loss,
        train__num_epochs=1,
    )
    run("train", spec)
    evaluated = run("evaluate", spec, "evaluate.checkpoint=latest")
    assert evaluated.kpis
    run("train", spec, "train.num_epochs=2")  # continued
    latest = tmp_path / "train" / "changenet_model_classify_latest.pth"
    inspector = load_inspector(latest)
    assert inspector.spec.model.decode_head.use_summary_token is True
    foreign = torch.load(latest, weights_only=True)  # as TAO writes it: no card, and no plain spec
    torch.save({name: foreign[name] for name in ("state_dict", "pytorch-lightning_version")}, tmp_path / "tao.pth")
    again = run("evaluate", spec, f"evaluate.checkpoint={tmp_path / 'tao.pth'}", f"results_dir={tmp_path / 'tao'}")
    assert again.kpis.keys() == evaluated.kpis.keys()
