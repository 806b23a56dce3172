import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_specificity_at_sensitivity

from changenet.classify.metric_names import METRICS
from changenet.classify.metrics import (
    FAR_RECALLS,
    classify_report,
    false_alarm_rate,
    ranked,
    suggest_margin,
    tao_counts,
    threshold_table,
    val_far,
)
from fiducial.errors import MetricError

# 3 good pairs, 2 defects; between the defects (0.6 and 0.9) lies the good pair of 0.7
SCORE = torch.tensor([0.1, 0.7, 0.2, 0.6, 0.9])
LABEL = torch.tensor([0, 0, 0, 1, 1])


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def sample(rng):
    """200 rows with many ties."""
    label = torch.randint(0, 2, (200,), generator=rng)
    score = ((torch.rand(200, generator=rng) + 0.4 * label) * 20).round() / 28
    return score, label


class TestTaoCounts:
    @pytest.mark.parametrize(
        ("margin", "expected"),  # stored numbers of TAO's AOI metrics: accuracy, defect accuracy, false alarm, negative
        [
            (0.3, (41.666664123535156, 65.38461303710938, 43.33333206176758, 15.000000953674316)),
            (0.5, (50.0, 46.153846740722656, 26.666667938232422, 23.33333396911621)),
            (2.0, (56.66666793823242, 0.0, 0.0, 43.33333206176758)),
        ],
    )
    def test_stored_numbers(self, margin, expected):
        score = torch.from_numpy(np.random.RandomState(8).random_sample(60).astype(np.float32))
        label = torch.from_numpy(np.random.RandomState(9).randint(0, 2, (60, 1))).flatten()
        assert tuple(tao_counts(score, label, margin).values()) == pytest.approx(expected, rel=1e-4)

    def test_hand_computed(self):  # 0.7 and 0.9 fail: one false alarm, one missed defect
        assert tao_counts(SCORE, LABEL, 0.65) == {
            "total_accuracy": 60.0,
            "defect_accuracy": 50.0,
            "false_alarm": 20.0,
            "false_negative": 20.0,
        }

    def test_a_score_on_the_margin_passes(self):
        assert tao_counts(torch.tensor([0.3]), torch.tensor([1]), 0.3)["false_negative"] == 100

    def test_no_defects_and_no_rows(self):
        assert tao_counts(torch.tensor([0.1]), torch.tensor([0]), 0.3)["defect_accuracy"] == 0
        assert set(tao_counts(torch.empty(0), torch.empty(0), 0.3).values()) == {0.0}


class TestFalseAlarmRate:
    def test_hand_computed(self):  # catching both defects needs a threshold below 0.6: 0.7 is a false alarm
        assert false_alarm_rate(SCORE, LABEL, min_recall=1.0) == pytest.approx(1 / 3)
        assert false_alarm_rate(SCORE, LABEL, min_recall=0.5) == 0

    def test_a_good_row_that_ties_with_the_last_defect_is_a_false_alarm(self):
        assert false_alarm_rate(torch.tensor([0.5, 0.1, 0.5]), torch.tensor([0, 0, 1]), min_recall=1.0) == 0.5

    def test_monotone_in_recall(self, sample):
        rates = [false_alarm_rate(*sample, min_recall=r) for r in (0.1, 0.5, 0.9, 0.99, 1.0)]
        assert rates == sorted(rates)

    def test_recall_counts_whole_defects(self):  # 7 of 100 defects, not 8, are 0.07 of them
        score = torch.cat([torch.arange(100) / 100, torch.tensor([0.925])])
        label = torch.tensor([1] * 100 + [0])
        assert false_alarm_rate(score, label, min_recall=0.07) == 0
        assert false_alarm_rate(score, label, min_recall=0.08) == 1

    @pytest.mark.parametrize("recall", [0.3, 0.55, 0.8, 1.0])
    def test_agrees_with_torchmetrics(self, sample, recall):
        specificity, _ = binary_specificity_at_sensitivity(*sample, min_sensitivity=recall)
        assert false_alarm_rate(*sample, min_recall=recall) == pytest.approx(1 - float(specificity), abs=1e-6)

    @pytest.mark.parametrize(("label", "missing"), [(0, "no defect samples"), (1, "no PASS samples")])
    def test_one_class_only_is_an_error(self, label, missing):
        with pytest.raises(MetricError, match=missing):
            false_alarm_rate(torch.rand(4), torch.full((4,), label), min_recall=1.0)

    @pytest.mark.parametrize("recall", [0.0, 1.5])
    def test_impossible_recall(self, recall):
        with pytest.raises(ValueError, match="min_recall"):
            false_alarm_rate(SCORE, LABEL, min_recall=recall)

    def test_val_far_is_in_percent_and_100_without_a_class(self):
        assert val_far(SCORE, LABEL) == pytest.approx(100 / 3)
        assert val_far(SCORE[:3], LABEL[:3]) == val_far(SCORE[3:], LABEL[3:]) == val_far(SCORE[:0], LABEL[:0]) == 100


class TestReport:
    def test_hand_computed(self):
        total = classify_report(SCORE, LABEL, 0.65).total
        assert (total.num, total.num_defects, total.tp, total.fp, total.tn, total.fn) == (5, 2, 1, 1, 2, 1)
        assert total.confusion_matrix == [[2, 1], [1, 1]]
        assert total.accuracy == 0.6
        assert total.false_positive_rate == pytest.approx(1 / 3)
        assert total.false_negative_rate == total.precision == total.recall == total.f1 == 0.5
        assert total.auroc == pytest.approx(5 / 6)  # of 6 (defect, good) pairs only (0.6, 0.7) is in the wrong order
        assert total.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
        assert total.far_at_recall_1000 == total.far_at_recall_999 == total.far_at_recall_990 == pytest.approx(1 / 3)

    def test_large_distances_are_not_squashed(self):
        assert classify_report(torch.tensor([40.0, 50.0, 60.0]), torch.tensor([0, 0, 1]), 45.0).total.auroc == 1

    def test_groups(self):
        report = classify_report(SCORE, LABEL, 0.65, groups=["R1", "R1", "C2", "C2", "C2"])
        assert list(report.groups) == ["C2", "R1"]
        assert report.groups["C2"].confusion_matrix == [[1, 0], [1, 1]]
        assert report.groups["C2"].auroc == 1
        assert report.groups["R1"].confusion_matrix == [[1, 1], [0, 0]]

    @pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 5), slice(0, 0)])
    def test_one_class_or_no_rows_never_crash(self, rows):
        total = classify_report(SCORE[rows], LABEL[rows], 0.65, bootstrap=20).total
        assert total.auroc is total.average_precision is total.far_at_recall_1000 is None
        assert "auroc" not in total.intervals
        json.dumps(total.plain(), allow_nan=False)

    def test_what_each_missing_class_leaves_undefined(self):
        good, bad = classify_report(SCORE[:3], LABEL[:3], 0.65).total, classify_report(SCORE[3:], LABEL[3:], 0.65).total
        assert good.recall is good.false_negative_rate is bad.false_positive_rate is None
        assert (good.precision, good.false_positive_rate) == (0, pytest.approx(1 / 3))
        assert (bad.precision, bad.recall) == (1, 0.5)
        assert classify_report(SCORE, LABEL, 0.95).total.precision is None

    def test_plain_is_json(self):
        plain = classify_report(SCORE, LABEL, 0.65, groups=list("aabbb"), bootstrap=10).plain()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["margin"] == 0.65
        assert plain["total"]["confusion_matrix"] == [[2, 1], [1, 1]]
        assert plain["groups"]["a"]["num"] == 2

    def test_half_precision_scores(self):
        assert classify_report(SCORE.half(), LABEL, 0.65).total.tp == 1


class TestBootstrap:
    def test_deterministic_by_seed(self, sample):
        first, again, other = (classify_report(*sample, 0.5, bootstrap=50, seed=seed).total for seed in (1, 1, 2))
        assert first.intervals == again.intervals != other.intervals

    def test_intervals_hold_the_value_and_shrink_with_rows(self, sample):
        score, label = sample
        few = classify_report(score, label, 0.5, bootstrap=300).total
        many = classify_report(score.repeat(16), label.repeat(16), 0.5, bootstrap=300).total
        for name in ("accuracy", "precision", "recall", "f1", "auroc", "average_precision", "false_positive_rate"):
            low, high = few.intervals[name]
            assert low <= getattr(few, name) <= high
            assert 0 < high - low < 0.3
            assert many.intervals[name][1] - many.intervals[name][0] < 0.4 * (high - low)

    def test_width_of_a_proportion(self, rng):  # recall of 0.8 over 400 defects: +-1.96 sqrt(0.8 * 0.2 / 400)
        label = torch.tensor([1] * 400 + [0] * 10)
        score = torch.tensor([0.9] * 320 + [0.1] * 90)
        low, high = classify_report(score, label, 0.5, bootstrap=2000).total.intervals["recall"]
        half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
        assert (low, high) == (pytest.approx(0.8 - half, abs=0.006), pytest.approx(0.8 + half, abs=0.006))

    def test_a_single_row_of_each_class_resamples_to_itself(self):
        """With nothing to vary the interval is the value: the vectorised metrics agree with the others."""
        total = classify_report(torch.tensor([0.2, 0.9]), torch.tensor([0, 1]), 0.5, bootstrap=5).total
        assert all(ends == (getattr(total, name),) * 2 for name, ends in total.intervals.items())

    def test_vectorised_metrics_agree_with_torchmetrics(self, sample, monkeypatch):
        def everything(rank_n, num_values, size, generator):  # every resample is the sample itself
            return torch.bincount(rank_n, minlength=num_values).cumsum(0).expand(size, -1)

        monkeypatch.setattr("changenet.classify.metrics._resample", everything)
        total = classify_report(*sample, 0.5, bootstrap=3).total
        assert set(total.intervals) >= {"auroc", "average_precision", "f1", *FAR_RECALLS}
        for name, ends in total.intervals.items():
            assert ends == pytest.approx((getattr(total, name),) * 2, abs=1e-6)

    def test_many_rows_take_seconds(self, rng):
        label = (torch.rand(10_000, generator=rng) < 0.05).long()
        low, high = classify_report(torch.rand(10_000, generator=rng), label, 0.5, bootstrap=1000).total.intervals[
            "auroc"
        ]
        assert 0.4 < low < 0.5 < high < 0.6


class TestKpis:
    def test_names_are_those_of_the_table(self):
        report = classify_report(SCORE, LABEL, 0.65)
        for stage in ("train", "val", "test"):
            assert set(report.kpis(stage)) == set(METRICS.kpis(stage)) - {f"{stage}_loss"}

    def test_values_and_units(self):
        kpis = classify_report(SCORE, LABEL, 0.65).kpis("test")
        assert (kpis["test_acc"], kpis["test_fpr"], kpis["test_fnr"], kpis["defect_acc"]) == (60, 20, 20, 50)
        assert (kpis["test_true_fpr"], kpis["test_true_fnr"]) == (pytest.approx(100 / 3), 50)
        assert kpis["test_recall"] == 0.5
        assert classify_report(SCORE, LABEL, 0.65).kpis("val")["val_far"] == pytest.approx(100 / 3)

    def test_missing_class(self):
        kpis = classify_report(SCORE[:3], LABEL[:3], 0.65).kpis("val")
        assert kpis["val_far"] == kpis["val_far_999"] == 100
        assert math.isnan(kpis["val_auroc"])

    def test_per_group(self):
        report = classify_report(SCORE, LABEL, 0.65, groups=["R1", "R1", "C2", "C2", "C2"])
        assert "val_recall/C2" not in report.kpis("val")
        assert report.kpis("val", per_group=True)["val_recall/C2"] == 0.5


class TestThresholds:
    def test_hand_computed(self):
        rows = [(row.threshold, row.missed_defects, row.false_alarms) for row in threshold_table(SCORE, LABEL)]
        assert rows == [(pytest.approx(0.4), 0, 1), (pytest.approx(0.8), 1, 0)]  # 2 missed saves nothing more
        first = threshold_table(SCORE, LABEL)[0]
        assert (first.precision, first.recall, first.f1) == (pytest.approx(2 / 3), 1, pytest.approx(0.8))

    def test_rows_are_what_their_margin_does(self, sample):
        table = threshold_table(*sample)
        assert len(table) > 5
        for row in table:
            total = classify_report(*sample, row.threshold).total
            assert (total.fn, total.fp) == (row.missed_defects, row.false_alarms)
            assert (total.precision, total.recall, total.f1) == (row.precision, row.recall, row.f1)

    def test_only_trade_offs_remain(self, sample):
        table = threshold_table(*sample)
        for lower, higher in pairwise(table):
            assert lower.threshold < higher.threshold
            assert lower.missed_defects < higher.missed_defects
            assert lower.false_alarms > higher.false_alarms

    def test_one_class_ties_and_no_rows(self):
        (good,) = threshold_table(SCORE[:3], LABEL[:3])
        assert (good.threshold, good.missed_defects, good.false_alarms) == (pytest.approx(0.7), 0, 0)
        (bad,) = threshold_table(SCORE[3:], LABEL[3:])
        assert (bad.threshold, bad.missed_defects, bad.false_alarms) == (pytest.approx(0.3), 0, 0)
        tied = threshold_table(torch.tensor([0.5, 0.5]), torch.tensor([0, 1]))
        assert [(row.threshold, row.missed_defects, row.false_alarms) for row in tied] == [(0.25, 0, 1), (0.5, 1, 0)]
        assert threshold_table(SCORE[:0], LABEL[:0]) == []

    def test_neighbouring_floats_and_zero(self):
        low = torch.tensor(0.5)
        score = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))])
        assert classify_report(score, torch.tensor([0, 1]), suggest_margin(score, torch.tensor([0, 1]))).total.fp == 0
        assert suggest_margin(torch.tensor([0.0, 1.0]), torch.tensor([1, 1])) < 0


class TestSuggestMargin:
    def test_hand_computed(self):
        assert suggest_margin(SCORE, LABEL) == 0.5999  # float32 takes 0.6 for the score itself
        assert suggest_margin(SCORE, LABEL, min_recall=0.5) == 0.8999

    @pytest.mark.parametrize(
        ("score", "margin"),
        [
            ([0.73218, 0.9], 0.7321),  # no row lies lower
            ([123.456, 0.1], 0.0999),
            ([1e-6, 1.0], 9.999e-7),
            ([1234567.0], 1234000.0),
        ],
    )
    def test_of_defects_alone(self, score, margin):
        assert suggest_margin(torch.tensor(score), torch.ones(len(score), dtype=torch.long)) == margin

    def test_more_digits_where_a_good_row_is_near(self):
        score, label = torch.tensor([0.512345, 0.512341, 0.2]), torch.tensor([1, 0, 0])
        margin = suggest_margin(score, label)
        assert 0.512341 <= margin < 0.512345
        assert classify_report(score, label, margin).total.confusion_matrix == [[2, 0], [0, 1]]

    @pytest.mark.parametrize("seed", range(20))
    def test_no_larger_margin_that_finds_all_passes_more_good_rows(self, seed):
        generator = torch.Generator().manual_seed(seed)
        score, label = torch.rand(30, generator=generator) ** 4, torch.randint(0, 2, (30,), generator=generator)
        lowest = score[label == 1].min()
        largest = float(torch.nextafter(lowest, torch.tensor(-1.0)))
        total, best = (
            classify_report(score, label, margin).total for margin in (suggest_margin(score, label), largest)
        )
        assert (total.fn, total.fp) == (0, best.fp)

    @pytest.mark.parametrize("recall", [0.5, 0.9, 1.0])
    def test_keeps_the_recall_and_the_least_false_alarms(self, sample, recall):
        total = classify_report(*sample, suggest_margin(*sample, min_recall=recall)).total
        assert total.recall >= recall
        assert total.false_positive_rate == false_alarm_rate(*sample, min_recall=recall)

    def test_needs_defects(self):
        with pytest.raises(MetricError, match="no defect samples"):
            suggest_margin(SCORE[:3], LABEL[:3])


def test_ranked_keeps_order_and_ties():
    assert ranked(torch.tensor([30.0, -4.0, 30.0, 7.0])).tolist() == [1, 0, 1, 0.5]


class TestRefused:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_scores(self, bad):
        with pytest.raises(MetricError, match="1 of 2 scores are NaN or infinite"):
            classify_report(torch.tensor([0.1, bad]), torch.tensor([0, 1]), 0.5)

    @pytest.mark.parametrize("margin", [math.nan, math.inf, -math.inf, 1e39])
    def test_margins(self, margin):
        for measure in (tao_counts, classify_report):
            with pytest.raises(MetricError, match="give a finite number"):
                measure(SCORE, LABEL, margin)

    def test_labels(self):
        with pytest.raises(MetricError, match="labels are 0"):
            tao_counts(torch.tensor([0.1]), torch.tensor([2]), 0.5)

    def test_shapes(self):
        with pytest.raises(MetricError, match="one score and one label per row"):
            tao_counts(torch.rand(3), torch.zeros(3, 1), 0.5)
        with pytest.raises(MetricError, match="one group name per row"):
            classify_report(SCORE, LABEL, 0.5, groups=["R1"])
