"""The base of all training modules, by itself: losses over ranks, what checkpoints hold, rules for continuing."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from fiducial.deploy.card import ModelCard
from fiducial.errors import CheckpointError, Problem, TrainingError
from fiducial.run.names import best_name, fields_of
from fiducial.task import ResumeRules
from fiducial.training import mean
from fiducial.training.mean import MeanLoss
from fiducial.training.module import MAX_SKIPPED, TrainingModule, TrainingPlan
from fiducial.training.policy import TrainerPolicy


class Plain(TrainingModule):
    """As little as a network may write."""

    tao_model = "plain"

    def __init__(self, plan=None):
        super().__init__(plan or TrainingPlan())
        self.model = nn.Linear(2, 1)

    def evaluate_batch(self, batch):
        output = self.model(batch["x"])
        return {"y": output}, output.mean()


class TestMeanLoss:
    def test_weighted_by_the_sizes_of_batches(self):
        loss = MeanLoss()
        loss.update(torch.tensor(1.0), 4)
        loss.update(torch.tensor(6.0), 1)
        assert loss.finish() == pytest.approx((4 * 1 + 6) / 5)
        assert loss.finish() is None

    def test_ranks_are_added_in_the_order_of_one_process(self, monkeypatch):
        """To the last bit: rank r has batches r, r + 2, ... of one list."""
        values, ranks = [0.1, 0.7, 1e8, 0.3, 0.9], []
        alone = MeanLoss()
        for value in values:
            alone.update(torch.tensor(value), 3)
        for rank in (0, 1):
            part = MeanLoss()
            for value in values[rank::2]:
                part.update(torch.tensor(value), 3)
            monkeypatch.setattr(mean, "gather", lambda local: ranks.append(local) or [local])
            part.finish()
        monkeypatch.setattr(mean, "gather", lambda local: [local])
        expected = alone.finish()
        monkeypatch.setattr(mean, "gather", lambda local: ranks)
        assert MeanLoss().finish() == expected


class TestModule:
    def test_loss_of_a_stage_without_an_evaluator(self):
        module = Plain()
        for x in (torch.zeros(3, 2), torch.zeros(1, 2)):
            module.validation_step({"x": x}, 0)
        bias = float(module.model.bias.detach())
        assert module.kpis("val") == {"val_loss": pytest.approx(bias)}
        assert module.kpis("val") == {}

    def test_what_a_checkpoint_says(self):
        saved: dict = {}
        plan = TrainingPlan(card=ModelCard(network="n", mean=(0.5,)), weights="3 of 3 tensors", tao_model_type="t")
        Plain(plan).on_save_checkpoint(saved)
        assert (saved["tao_model"], saved["tao_model_type"]) == ("plain", "t")
        card = ModelCard.of(saved["fiducial"])
        assert (card.network, card.mean, card.details) == ("n", (0.5,), {"loaded_weights": "3 of 3 tensors"})
        assert "accumulated_gradients" not in saved

    def test_gradients_of_an_unfinished_step_are_kept(self):
        first, second, saved = Plain(), Plain(), {}
        first.on_before_backward(torch.tensor(0.0))
        first.model(torch.ones(1, 2)).sum().backward()
        first.on_after_backward()
        first.on_save_checkpoint(saved)
        second.on_load_checkpoint(saved)
        assert second.model.weight.grad is None
        second.on_train_start()
        assert torch.equal(second.model.weight.grad, torch.ones(1, 2))
        again: dict = {}
        second.on_save_checkpoint(again)
        assert again["accumulated_gradients"].keys() == {"model.weight", "model.bias"}

    def test_what_contradicts_a_checkpoint_is_said(self):
        plan = TrainingPlan(explain=lambda found: [Problem("a.key", str(found["epoch"]), "fix")])
        with pytest.raises(CheckpointError, match=r"a\.key · 3 · fix"):
            Plain(plan).on_load_checkpoint({"epoch": 3})


class ByHand(Plain):
    """Its loss is the batch times its one weight; it notes which batches changed the weight."""

    def __init__(self, *, accumulate=1, clip=None):
        super().__init__()
        self.automatic_optimization = False
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.policy = TrainerPolicy(accumulate=accumulate, gradient_clip=clip)
        self.stepped: list[bool] = []

    def training_step(self, batch, batch_idx):
        self.stepped.append(self.optimize((self.model.weight * batch).sum(), batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=1.0)


def fit(module, batches, scaler=None):
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaler else []
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = pl.Trainer(accelerator="cpu", plugins=plugins, enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader([torch.tensor(float(b)) for b in batches], batch_size=1))


def scaler_of(scale):
    return torch.amp.GradScaler("cpu", init_scale=scale)


NAN = float("nan")


class TestOptimizingByHand:
    def test_what_is_not_finite_makes_no_step(self, caplog):
        caplog.set_level(logging.INFO, "fiducial")
        module = ByHand()
        fit(module, [1, NAN, 2, float("inf"), 4])
        assert module.stepped == [True, False, True, False, True]
        assert module.model.weight.item() == -7
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert told == [f"epoch 0, batch {b}: gradients are not finite, no step" for b in (1, 3)]

    def test_of_several_batches_that_make_one_step(self):
        module = ByHand(accumulate=2)
        fit(module, [1, NAN, 2, 4, 8])
        assert module.stepped == [False, False, False, True, True]
        assert module.model.weight.item() == -(2 + 4) / 2 - 8 / 2

    @pytest.mark.parametrize("scaled", [False, True])
    def test_too_many_in_a_row_end_the_training(self, scaled):
        module = ByHand()
        with pytest.raises(TrainingError, match=f"{MAX_SKIPPED} steps in a row"):
            fit(module, [1, *[NAN] * (MAX_SKIPPED + 5)], scaler_of(2.0) if scaled else None)
        assert module.model.weight.item() == -1
        assert len(module.stepped) == MAX_SKIPPED

    def test_one_step_between_them_goes_on(self):
        module = ByHand()
        fit(module, ([NAN] * (MAX_SKIPPED - 1) + [1]) * 2)
        assert module.model.weight.item() == -2

    def test_a_scale_is_found_by_trying(self):
        """A gradient of 1e38 is infinite 16 times, 8 times and 4 times as large, and is taken twice as large."""
        module, scaler = ByHand(), scaler_of(16.0)
        fit(module, [1e38] * 5, scaler)
        assert module.stepped == [False, False, False, True, True]
        assert scaler.get_scale() == 2.0
        assert module.model.weight.item() == pytest.approx(-2e38)

    @pytest.mark.parametrize("clip", [None, 0.5])
    def test_scaled_batches_together_are_what_they_are_unscaled(self, clip):
        plain, scaled = ByHand(accumulate=2, clip=clip), ByHand(accumulate=2, clip=clip)
        fit(plain, [1, 3, 5])
        fit(scaled, [1, 3, 5], scaler_of(1024.0))
        assert scaled.stepped == plain.stepped == [False, True, True]
        want = pytest.approx(-4.5 if clip is None else -1.0)
        assert (scaled.model.weight.item(), plain.model.weight.item()) == (want, want)

    def test_kept_gradients_have_no_scale(self):
        module, saved = ByHand(accumulate=4), {}
        module.on_train_batch_end = lambda *_: module.on_save_checkpoint(saved) if len(module.stepped) == 2 else None
        fit(module, [1, 3, 5, 7], scaler_of(1024.0))
        assert saved["accumulated_gradients"]["model.weight"].item() == (1 + 3) / 4
        again = ByHand(accumulate=4)
        again.on_load_checkpoint(saved)
        fit(again, [5], scaler_of(64.0))
        assert again.model.weight.item() == -((1 + 3) / 4 + 5 / 4)

    def test_infinite_gradients_of_a_scale_too_large_are_not_kept(self):
        module, saved = ByHand(accumulate=2), {}
        module.on_train_batch_end = lambda *_: module.on_save_checkpoint(saved) if len(module.stepped) == 1 else None
        fit(module, [1e38, 1], scaler_of(1024.0))
        assert "fiducial" in saved
        assert "accumulated_gradients" not in saved


class TestResumeRules:
    @pytest.mark.parametrize(
        ("key", "free"),
        [
            ("results_dir", True),
            ("train.num_epochs", True),
            ("evaluate.checkpoint", True),
            ("evaluate.use_teacher_test", False),  # what validates in training may follow it
            ("train.num_gpus", False),  # a learning rate may follow it
            ("dataset.workers", True),
            ("dataset.num_workers_per_gpu", True),
            ("dataset.cache_mb", True),
            ("train.lr", False),
        ],
    )
    def test_free_keys(self, key, free):
        assert ResumeRules().is_free(key) is free

    def test_of_a_task(self):
        assert ResumeRules(also_free=("evaluate.",)).is_free("evaluate.use_teacher_test")


class TestNames:
    def test_metrics_with_blanks_and_slashes(self):
        template = "b_{epoch:02d}_{val Precision at Rank 1:.2f}_{val/box error:.1f}"
        assert fields_of(template) == ["epoch", "val Precision at Rank 1", "val/box error"]
        values = {"epoch": 3, "val Precision at Rank 1": 0.5, "val/box error": 2.0}
        assert best_name(template, values, insert_names=False) == "b_03_0.50_2.0.pth"
        assert best_name("{val/box error:.1f}", values, insert_names=True) == "val_box error_2.0.pth"
