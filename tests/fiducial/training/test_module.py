"""The base of all training modules, by itself: losses over ranks, what checkpoints hold, rules for continuing."""

import pytest
import torch
from torch import nn

from fiducial.deploy.card import ModelCard
from fiducial.errors import CheckpointError, Problem
from fiducial.run.names import best_name, fields_of
from fiducial.task import ResumeRules
from fiducial.training import mean
from fiducial.training.mean import MeanLoss
from fiducial.training.module import TrainingModule, TrainingPlan


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
