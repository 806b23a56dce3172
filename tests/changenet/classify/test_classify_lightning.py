"""The training loop's own decisions, and both sides of ``compat``."""

from dataclasses import replace

import pytest
import torch
from changenet.training import TrainingPlan
from torch import nn

from changenet.classify.lightning import ClassifyModule
from changenet.classify.losses import contrastive_loss
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.transform import CLIP, IMAGENET
from fiducial.data.normalization import Normalization
from fiducial.errors import CheckpointError, Problem

RADIO = {
    "model__backbone__type": "c_radio_v2_vit_base_patch16_224",
    "dataset__classify__input_map": None,
    "dataset__classify__num_input": 1,
    "dataset__classify__image_width": 64,
    "dataset__classify__image_height": 64,
}


class Distances(nn.Module):
    """Gives the first pixel of the test image as the distance."""

    def forward(self, test, golden):
        return test[:, 0, 0, 0]


SGD = {"optim": "sgd", "policy": "step", "arguments": {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0}}
PLAN = TrainingPlan(SGD, num_epochs=3, normalization=Normalization(*IMAGENET))


def module(plan: TrainingPlan = PLAN, **changes) -> ClassifyModule:
    defaults = {
        "learnable": False,
        "cls_weight": [1.0, 3.0],
        "contrastive_margin": 2.0,
        "eval_margin": 0.5,
    }
    return ClassifyModule(Distances(), plan, **{**defaults, **changes})


def batch(distances: list[float], labels: list[int]) -> dict:
    test = torch.tensor(distances).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return {"test": test, "golden": test, "label": torch.tensor(labels), "row": torch.arange(len(labels))}


class TestLoss:
    def test_weighted_cross_entropy(self):
        loss = module(learnable=True).loss(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        assert float(loss) == pytest.approx(0.6931, abs=1e-4)
        logits, label = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        by_hand = (1 * torch.log1p(torch.tensor(-2.0).exp()) + 3 * torch.log1p(torch.tensor(-1.0).exp())) / 4
        assert float(module(learnable=True).loss(logits, label)) == pytest.approx(float(by_hand))

    def test_contrastive_per_pair(self):
        loss = module().loss(torch.tensor([1.0, 0.5]), torch.tensor([0, 1]))
        assert float(loss) == pytest.approx((1.0**2 + 1.5**2) / 2)

    def test_compat_tao_mixes_all_pairs_of_the_batch(self):
        distance, label = torch.tensor([1.0, 0.5]), torch.tensor([0, 1])
        loss = module(compat_tao=True).loss(distance, label)
        assert float(loss) == pytest.approx(0.5 * (1 + 0.25) / 2 + 0.5 * (1 + 2.25) / 2)
        assert float(loss) == float(contrastive_loss(distance, label, broadcast=True))


class TestMargin:
    @pytest.mark.parametrize(("compat_tao", "accuracy"), [(False, 100.0), (True, 50.0)])
    def test_of_validation(self, compat_tao, accuracy):
        trained = module(compat_tao=compat_tao)
        trained.validation_step(batch([0.1, 0.9], [0, 1]), 0)  # nothing is above TAO's 2.0
        kpis = trained.epoch_kpis("val")
        assert kpis["val_acc"] == accuracy
        assert kpis["val_auroc"] == 1.0

    def test_evaluation_keeps_the_margin_of_the_spec(self, make_spec):
        runtime = ClassifyRuntime(make_spec(compat="tao", model__classify__eval_margin=0.3))
        assert runtime.margin == 0.3
        assert runtime.module(pretrained=False).eval_margin == 2.0


class TestKpis:
    def test_names_and_loss(self):
        trained = module()
        for start in (0, 2):
            rows = batch([0.1, 0.9], [0, 1])
            rows["row"] += start
            trained.validation_step(rows, 0)
        kpis = trained.epoch_kpis("val")
        assert kpis["val_loss"] == pytest.approx((0.01 + 1.1**2) / 2)
        assert {"val_acc", "val_fpr", "val_far", "val_ap", "val_true_fnr"} <= kpis.keys()

    def test_per_group(self):
        trained = module(groups=["R", "C", "C"])
        trained.validation_step(batch([0.1, 0.1, 0.9], [1, 0, 1]), 0)
        kpis = trained.epoch_kpis("val")
        assert (kpis["val_recall/R"], kpis["val_recall/C"]) == (0.0, 1.0)

    def test_sanity_check_leaves_nothing_behind(self):
        trained = module()
        trained.validation_step(batch([0.1, 0.9], [0, 1]), 0)
        trained.epoch_kpis("val")
        trained.validation_step(batch([0.9, 0.9], [0, 1]), 0)
        assert trained.epoch_kpis("val")["val_acc"] == 50.0


class TestCheckpoint:
    def test_what_it_says_of_itself(self, make_spec):
        saved: dict = {}
        ClassifyRuntime(make_spec(**RADIO)).module(pretrained=False).on_save_checkpoint(saved)
        assert saved == {
            "tao_model": "visual_changenet_classify",
            "tao_model_type": "radio_learnable",
            "fiducial": {"mean": list(CLIP[0]), "std": list(CLIP[1])},
        }

    def test_secrets_are_not_stored(self, make_spec):
        stored = ClassifyRuntime(make_spec(encryption_key="tlt_secret")).module(pretrained=False).hparams
        assert "tlt_secret" not in str(dict(stored))
        assert stored["model"]["backbone"]["type"] == "fan_tiny_8_p4_hybrid"

    def test_resuming_explains_itself(self):
        changed = replace(PLAN, explain=lambda checkpoint: [Problem("a.key", str(checkpoint["epoch"]), "fix")])
        trained = module(changed)
        with pytest.raises(CheckpointError, match=r"a\.key · 3 · fix"):
            trained.on_load_checkpoint({"epoch": 3})
        module().on_load_checkpoint({"epoch": 3})


class TestNormalizationOfACheckpoint:
    """C-RADIO while the spec keeps its defaults: by the file's own record, else by who wrote it."""

    @pytest.mark.parametrize(
        ("meta", "compat", "mean"),
        [
            ({}, "off", CLIP[0]),
            ({}, "tao", IMAGENET[0]),
            ({"fiducial": {"mean": IMAGENET[0], "std": IMAGENET[1]}}, "off", IMAGENET[0]),
            ({"fiducial": {"mean": CLIP[0], "std": CLIP[1]}}, "tao", CLIP[0]),
            ({"pytorch-lightning_version": "2.5.0.post0"}, "off", IMAGENET[0]),
            ({"pytorch-lightning_version": "2.6.1"}, "off", CLIP[0]),
        ],
    )
    def test_radio(self, make_spec, meta, compat, mean):
        runtime = ClassifyRuntime(make_spec(compat=compat, **RADIO))
        runtime.use_normalization_of(meta)
        assert runtime.normalization.mean == mean
        assert runtime.metadata()["mean"] == list(mean)

    def test_a_file_that_could_be_either_is_warned_of(self, make_spec, caplog, monkeypatch):
        monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
        ClassifyRuntime(make_spec(**RADIO)).use_normalization_of({"pytorch-lightning_version": "2.6.1"})
        assert "radio_normalization: as_configured" in caplog.text

    def test_a_spec_with_other_values_than_the_training_is_warned_of(self, make_spec, caplog, monkeypatch):
        monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
        changed = {"dataset__classify__augmentation_config": {"rgb_input_mean": [0.5, 0.5, 0.5]}}
        runtime = ClassifyRuntime(make_spec(**changed))
        runtime.use_normalization_of({"fiducial": {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}})
        assert runtime.normalization.mean == (0.5, 0.5, 0.5)
        assert "the model was trained with [0.485, 0.456, 0.406]" in caplog.text
