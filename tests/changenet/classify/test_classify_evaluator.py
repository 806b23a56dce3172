"""From outputs to scores, on one rank or several."""

import numpy as np
import pytest
import torch

from changenet.classify import evaluator as module
from changenet.classify.evaluator import PairEvaluator
from fiducial.errors import MetricError


def batch(rows: list[int]) -> dict[str, torch.Tensor]:
    return {"row": torch.tensor(rows), "label": torch.tensor([int(row % 3 == 2) for row in rows])}


def make(stage="test", **options) -> PairEvaluator:
    return PairEvaluator(stage, margin=0.5, **options)


def test_logits_become_probabilities_and_distances_stay():
    evaluator = make()
    evaluator.update({"output": torch.tensor([[0.0, 0.0], [0.0, np.log(3)]])}, batch([0, 1]))
    assert evaluator.finish().score.tolist() == pytest.approx([0.5, 0.75])
    evaluator.update({"output": torch.tensor([1.5, 0.0])}, batch([0, 1]))
    assert evaluator.finish().score.tolist() == [1.5, 0.0]


def test_ranks_are_put_into_dataset_order(monkeypatch):
    """Two ranks that took batches in turn; the second has one batch fewer."""
    ranks = []
    for shares in ([[0, 1], [4]], [[2, 3]]):
        evaluator = make()
        for rows in shares:
            evaluator.update({"output": torch.tensor(rows) / 10}, batch(rows))
        monkeypatch.setattr(module, "gather", lambda value: ranks.append(value) or [value])
        evaluator.finish()
    monkeypatch.setattr(module, "gather", lambda value: ranks)
    results = make().finish()
    assert results.row.tolist() == [0, 1, 2, 3, 4]
    assert results.score.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert results.label.tolist() == [0, 0, 1, 0, 0]


def test_forgets_what_it_gave():
    evaluator = make()
    evaluator.update({"output": torch.zeros(1)}, batch([0]))
    evaluator.finish()
    with pytest.raises(MetricError, match="no rows were scored"):
        evaluator.finish()


def test_one_class_serves_validation_and_the_test_set():
    """The same outputs give the same numbers under both stages' names."""
    kpis = {}
    for stage in ("val", "test", "infer"):
        evaluator = make(stage)
        evaluator.update({"output": torch.tensor([0.1, 0.7, 0.9])}, batch([0, 1, 2]))
        kpis[stage] = evaluator.kpis(evaluator.finish())
    assert kpis["infer"] == {}
    shared = {name.replace("val_", "test_"): value for name, value in kpis["val"].items()}
    assert shared.items() <= kpis["test"].items()
    assert kpis["test"]["test_acc"] == pytest.approx(200 / 3)


def test_without_files_nothing_is_written():
    evaluator = make()
    evaluator.update({"output": torch.tensor([0.1, 0.7, 0.9])}, batch([0, 1, 2]))
    assert evaluator.write(evaluator.finish(), {}) == ()


class TestUnsoundScores:
    LOGITS = ([0.0, float("nan")], [0.0, float("inf")], [0.0, float("-inf")], [float("inf"), 0.0], [float("-inf"), 0.0])

    @pytest.mark.parametrize("stage", ["test", "infer"])
    @pytest.mark.parametrize("output", [*LOGITS, float("nan"), float("inf"), float("-inf")])
    def test_stop_with_the_rows_named(self, stage, output):
        evaluator = make(stage, where="pairs.csv:{}".format)
        good = [0.0, 0.0] if isinstance(output, list) else 0.0
        evaluator.update({"output": torch.tensor([good, output])}, batch([0, 1]))
        evaluator.update({"output": torch.tensor([good, output])}, batch([2, 3]))
        with pytest.raises(MetricError, match="NaN or infinite") as caught:
            evaluator.kpis(evaluator.finish())
        assert [problem.where for problem in caught.value.problems] == ["pairs.csv:1", "pairs.csv:3"]

    @pytest.mark.parametrize("stage", ["train", "val"])
    def test_in_training_no_metric_is_known(self, stage, caplog, monkeypatch):
        monkeypatch.setattr(module.LOGGER, "propagate", True)
        evaluator = make(stage, where="pairs.csv:{}".format)
        evaluator.update({"output": torch.tensor([0.1, float("nan"), 0.9])}, batch([0, 1, 2]))
        kpis = evaluator.kpis(evaluator.finish())
        assert f"{stage}_acc" in kpis
        assert f"{stage}_loss" not in kpis  # the module's own
        assert all(np.isnan(value) for value in kpis.values())
        assert f"1 of 3 {stage} scores are NaN or infinite" in caplog.text
        assert "pairs.csv:1" in caplog.text
