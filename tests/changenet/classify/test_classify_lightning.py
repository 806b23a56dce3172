"""The training loop's own decisions, and both sides of ``compat``."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from changenet.classify.evaluator import PairEvaluator
from changenet.classify.lightning import ClassifyModule
from changenet.classify.losses import contrastive_loss
from changenet.classify.metric_names import METRICS
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.transform import CLIP, IMAGENET
from fiducial.checkpoints.reading import Checkpoint
from fiducial.deploy.card import ModelCard
from fiducial.errors import CheckpointError, Problem
from fiducial.run.callbacks import Reporter
from fiducial.run.status import StatusWriter
from fiducial.training.module import TrainingPlan
from fiducial.training.optim import OptimizerRecipe

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


SGD = OptimizerRecipe({"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0}, "sgd", "step", num_epochs=3)


def module(plan: TrainingPlan | None = None, *, margin: float = 0.5, groups=None, **changes) -> ClassifyModule:
    defaults = {
        "learnable": False,
        "cls_weight": [1.0, 3.0],
        "contrastive_margin": 2.0,
        "evaluators": {"val": PairEvaluator("val", margin=margin, groups=groups)},
    }
    return ClassifyModule(Distances(), plan, SGD, **{**defaults, **changes})


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
    @pytest.mark.parametrize(("margin", "accuracy"), [(0.5, 100.0), (2.0, 50.0)])
    def test_of_validation(self, margin, accuracy):
        trained = module(margin=margin)
        trained.validation_step(batch([0.1, 0.9], [0, 1]), 0)
        kpis = trained.kpis("val")
        assert kpis["val_acc"] == accuracy
        assert kpis["val_auroc"] == 1.0

    def test_evaluation_keeps_the_margin_of_the_spec(self, make_spec):
        """TAO's training and validation always use 2.0."""
        runtime = ClassifyRuntime(make_spec(compat="tao", model__classify__eval_margin=0.3))
        margins = {stage: runtime.evaluator(stage).margin for stage in ("train", "val", "test", "infer")}
        assert margins == {"train": 2.0, "val": 2.0, "test": 0.3, "infer": 0.3}


class TestKpis:
    def test_names_and_loss(self):
        trained = module()
        for start in (0, 2):
            rows = batch([0.1, 0.9], [0, 1])
            rows["row"] += start
            trained.validation_step(rows, 0)
        kpis = trained.kpis("val")
        assert kpis["val_loss"] == pytest.approx((0.01 + 1.1**2) / 2)
        assert {"val_acc", "val_fpr", "val_far", "val_ap", "val_true_fnr"} <= kpis.keys()

    def test_per_group(self):
        trained = module(groups=["R", "C", "C"])
        trained.validation_step(batch([0.1, 0.1, 0.9], [1, 0, 1]), 0)
        kpis = trained.kpis("val")
        assert (kpis["val_recall/R"], kpis["val_recall/C"]) == (0.0, 1.0)

    def test_sanity_check_leaves_nothing_behind(self):
        trained = module()
        trained.validation_step(batch([0.1, 0.9], [0, 1]), 0)
        trained.kpis("val")
        trained.validation_step(batch([0.9, 0.9], [0, 1]), 0)
        assert trained.kpis("val")["val_acc"] == 50.0

    def test_what_is_not_known_hides_the_number_of_an_earlier_epoch(self, monkeypatch, tmp_path):
        trained, logged = module(), {}
        monkeypatch.setattr(trained, "log", lambda name, value, **_: logged.update({name: value}))
        reporter = Reporter(StatusWriter(tmp_path), METRICS)
        for scores in ([0.1, 0.9], [0.1, float("nan")]):
            trained.validation_step(batch(scores, [0, 1]), 0)
            reporter._kpis(trained, "val")
        assert math.isnan(logged["val_auroc"])
        assert math.isnan(reporter.latest["val_auroc"])


class TestCheckpoint:
    def test_what_it_says_of_itself(self, make_spec):
        saved: dict = {}
        ClassifyRuntime(make_spec(**RADIO)).module(pretrained=False).on_save_checkpoint(saved)
        assert saved.keys() == {"tao_model", "tao_model_type", "fiducial"}
        assert (saved["tao_model"], saved["tao_model_type"]) == ("visual_changenet_classify", "radio_learnable")
        card = ModelCard.of(saved["fiducial"])
        assert (card.network, card.task, card.backbone) == (
            "visual_changenet",
            "classify",
            RADIO["model__backbone__type"],
        )
        assert (card.mean, card.std) == CLIP
        assert card.inputs["input_1"].shape == (3, 64, 64)
        assert card.versions["torch"] == torch.__version__

    def test_secrets_are_not_stored(self, make_spec):
        stored = ClassifyRuntime(make_spec(encryption_key="tlt_secret")).module(pretrained=False).hparams
        assert "tlt_secret" not in str(dict(stored))
        assert stored["model"]["backbone"]["type"] == "fan_tiny_8_p4_hybrid"

    def test_resuming_explains_itself(self):
        changed = TrainingPlan(explain=lambda checkpoint: [Problem("a.key", str(checkpoint["epoch"]), "fix")])
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
        runtime.adopt(card_of(meta))
        assert runtime.normalization.mean == mean
        assert runtime.card().mean == mean

    def test_a_file_that_could_be_either_is_warned_of(self, make_spec, caplog, monkeypatch):
        monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
        ClassifyRuntime(make_spec(**RADIO)).adopt(card_of({"pytorch-lightning_version": "2.6.1"}))
        assert "radio_normalization: as_configured" in caplog.text

    def test_the_training_counts_where_the_spec_says_otherwise(self, make_spec, caplog, monkeypatch):
        monkeypatch.setattr("fiducial.run.console.LOGGER.propagate", True)
        changed = {"dataset__classify__augmentation_config": {"rgb_input_mean": [0.5, 0.5, 0.5]}}
        runtime = ClassifyRuntime(make_spec(**changed))
        runtime.adopt(ModelCard(mean=IMAGENET[0], std=IMAGENET[1]))
        assert runtime.normalization.mean == IMAGENET[0]
        assert "as the model was trained; the spec says [0.5, 0.5, 0.5]" in caplog.text


def card_of(meta: dict) -> ModelCard:
    """The card of a checkpoint with these entries."""
    return ModelCard.of_checkpoint(Checkpoint(Path("x.pth"), "lightning", {}, meta, meta))
