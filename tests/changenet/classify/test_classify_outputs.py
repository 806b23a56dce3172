"""From scores to files."""

import csv
import json

import numpy as np
import pytest
import torch

from changenet.classify import outputs
from changenet.classify.outputs import PairResults, decide, group_names, write_evaluation, write_inference
from changenet.classify.rows import read_pairs
from fiducial.errors import MetricError


def results_of(scores) -> PairResults:
    score = torch.tensor(scores, dtype=torch.float32)
    rows = torch.arange(len(score))
    return PairResults(rows, (rows % 3 == 2).long(), score)


@pytest.fixture
def table(make_spec):
    return read_pairs(make_spec().dataset.classify, "test")


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestInferenceFile:
    def test_columns_rows_and_decisions(self, table, tmp_path):
        scores = np.linspace(0, 1, 11, dtype=np.float32)
        rows = read(write_inference(tmp_path, table, results_of(scores), margin=0.5))
        assert [row["decision"] for row in rows] == ["PASS"] * 6 + ["FAIL"] * 5  # 0.5 itself passes
        assert rows[1] == {**table.rows[1].fields, "siamese_score": rows[1]["siamese_score"], "decision": "PASS"}

    def test_numbers_read_back_as_they_were(self, table, tmp_path):
        scores = np.random.default_rng(0).random(11, dtype=np.float32) * np.float32(1e-3)
        rows = read(write_inference(tmp_path, table, results_of(scores), margin=0.5))
        assert np.array([row["siamese_score"] for row in rows], dtype=np.float32).tolist() == scores.tolist()

    def test_margin_is_compared_in_single_precision(self, table, tmp_path):
        scores = np.full(11, 0.3, dtype=np.float32)  # above 0.3 in double precision
        rows = read(write_inference(tmp_path, table, results_of(scores), margin=0.3))
        assert {row["decision"] for row in rows} == {"PASS"}

    def test_scoring_a_file_that_was_scored_replaces_the_columns(self, table, tmp_path, make_spec, pair_data):
        first = write_inference(tmp_path, table, results_of(np.zeros(11)), margin=0.5)
        files = {"csv_path": str(first), "images_dir": str(pair_data)}
        again = read_pairs(make_spec(dataset__classify__test_dataset=files).dataset.classify, "test")
        (tmp_path / "again").mkdir()
        rows = read(write_inference(tmp_path / "again", again, results_of(np.ones(11)), margin=0.5))
        assert list(rows[0])[-2:] == ["siamese_score", "decision"]
        assert {row["decision"] for row in rows} == {"FAIL"}


class TestDecide:
    def test_above_the_margin_fails(self):
        assert decide(np.array([0.1, 0.5, 0.6], dtype=np.float32), 0.5) == ["PASS", "PASS", "FAIL"]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_no_decision_on_what_is_no_number(self, bad, table, tmp_path):
        scores = np.array([0.1, bad, 0.9, bad, *[0.2] * 7], dtype=np.float32)
        with pytest.raises(MetricError, match=r"2 problems:\n.*score 1 · the score is NaN or infinite"):
            decide(scores, 0.5)
        with pytest.raises(MetricError, match="NaN or infinite"):
            write_inference(tmp_path, table, results_of(scores), margin=0.5)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("margin", [np.nan, np.inf, -np.inf, 1e39])
    def test_no_decision_at_a_margin_that_is_no_number(self, margin):
        with pytest.raises(MetricError, match="every row would PASS"):
            decide(np.array([0.1], dtype=np.float32), margin)


class TestEvaluation:
    SCORES = (0.1, 0.2, 0.9, 0.3, 0.6, 0.8, 0.1, 0.2, 0.4, 0.3, 0.1)
    """Defects are rows 2, 5 and 8; at 0.5 one of them is missed and row 4 is a false alarm."""

    def written(self, make_spec, table, folder, **changes):
        report = write_evaluation(folder, make_spec(**changes), table, results_of(self.SCORES), 0.5, {"model": "m.pth"})
        return report, json.loads((folder / "metrics.json").read_text())

    def test_numbers(self, make_spec, table, tmp_path):
        _, metrics = self.written(make_spec, table, tmp_path)
        assert metrics["kpis"]["test_acc"] == pytest.approx(100 * 9 / 11)
        assert metrics["kpis"]["test_fpr"] == pytest.approx(100 / 11)
        assert metrics["kpis"]["test_true_fpr"] == pytest.approx(100 / 8)
        assert metrics["kpis"]["defect_acc"] == pytest.approx(100 * 2 / 3)
        assert metrics["total"]["confusion_matrix"] == [[7, 1], [1, 2]]
        assert 0.3 <= metrics["suggested_eval_margin"] < 0.4
        assert metrics["run"] == {"model": "m.pth"}

    def test_line_of_tao(self, make_spec, table, tmp_path):
        report, _ = self.written(make_spec, table, tmp_path)
        assert outputs.summary_line(report) == (
            "Tot Comp 11 Total Accuracy 81.82 False Negative 9.09 False Alarm 9.09 "
            "Defect Correctly Captured 66.67 for Margin 0.5"
        )

    def test_groups(self, make_spec, table, tmp_path):
        _, metrics = self.written(make_spec, table, tmp_path)
        assert list(metrics["groups"]) == ["0000", "0001", "0002", "0003"]
        assert metrics["groups"]["0002"]["num"] == 3

    def test_a_column_of_all_different_values_makes_no_groups(self, table, monkeypatch):
        monkeypatch.setattr(outputs, "MAX_GROUPS", 3)
        assert outputs._known_groups(table, None) is None
        assert outputs._known_groups(table, "object_name") == group_names(table, None)

    def test_group_by_of_a_missing_column(self, table):
        with pytest.raises(MetricError, match="no column 'component'"):
            group_names(table, "component")

    def test_one_class_only(self, make_spec, table, tmp_path):
        results = results_of(self.SCORES)
        results.label.zero_()
        write_evaluation(tmp_path, make_spec(), table, results, 0.5, {})
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["kpis"]["test_auroc"] is None
        assert metrics["kpis"]["test_far"] == 100.0
        assert "suggested_eval_margin" not in metrics
