"""Retrieval metrics: by hand, and equal to pytorch-metric-learning's."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from mlrecog.metrics import average_precision, clusters, retrieval
from mlrecog.neighbours import unit

THEIRS = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
)


KNN = CustomKNN(LpDistance(normalize_embeddings=False))


def around(labels, seed, dim=8, noise=0.8):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=torch.Generator().manual_seed(0))
    return unit(centres[labels] + noise * torch.randn(len(labels), dim, generator=generator))


def on_a_circle(*degrees):
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


@pytest.fixture(scope="module")
def found():
    """One query at 0 degrees of class 0; the gallery at 10, 20, 30, 40 degrees is of classes 1, 0, 1, 0."""
    gallery = on_a_circle(10.0, 20.0, 30.0, 40.0)
    return retrieval(on_a_circle(0.0), torch.tensor([0]), gallery, torch.tensor([1, 0, 1, 0]))


class TestByHand:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("precision_at_1", 0),
            ("r_precision", 1 / 2),
            ("mean_average_precision", (1 / 2) / 2),  # cut at the largest class, 2 neighbours
            ("mean_average_precision_at_r", (1 / 2) / 2),
            ("mean_reciprocal_rank", 1 / 2),
            ("recall_at_1", 0),
            ("recall_at_5", 1),
            ("ndcg_at_10", (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))),
        ],
    )
    def test_metric(self, found, name, value):
        assert found.mean(name, by_class=False) == pytest.approx(value)

    def test_whole_map(self):
        gallery = on_a_circle(10.0, 20.0, 30.0, 40.0)
        labels = torch.tensor([1, 0, 1, 0])
        each = average_precision(on_a_circle(0.0), torch.tensor([0]), gallery, labels)
        assert each.tolist() == pytest.approx([(1 / 2 + 2 / 4) / 2])

    def test_distances_to_its_own_class_and_to_others(self, found):
        assert found.own_Q.tolist() == pytest.approx([2 - 2 * np.cos(np.deg2rad(20))], abs=1e-6)
        assert found.other_Q.tolist() == pytest.approx([2 - 2 * np.cos(np.deg2rad(10))], abs=1e-6)
        assert found.mixed_up(torch.tensor([1, 0, 1, 0])) == [(0, 1, 1)]


def test_a_far_own_class_is_found_all_the_same():
    """Of more strangers than are listed."""
    gallery = on_a_circle(*range(1, 41), 90.0)
    found = retrieval(on_a_circle(0.0), torch.tensor([5]), gallery, torch.tensor([*range(100, 140), 5]))
    assert found.own_Q.tolist() == pytest.approx([2.0], abs=1e-6)


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pytorch_metric_learning(by_class, seed):
    rng = np.random.default_rng(seed)
    queries, gallery = torch.from_numpy(rng.integers(0, 9, 60)), torch.from_numpy(rng.integers(1, 12, 90))
    x, y = around(queries, seed + 1), around(gallery, seed + 50)
    theirs = AccuracyCalculator(
        include=THEIRS,
        avg_of_avgs=by_class,
        k="max_bin_count",
        knn_func=KNN,
    ).get_accuracy(x, queries, y, gallery, ref_includes_query=False)
    ours = retrieval(x, queries, y, gallery)
    assert {name: ours.mean(name, by_class=by_class) for name in THEIRS} == pytest.approx(theirs, abs=1e-6)


def test_one_set_on_both_sides():
    labels = torch.arange(30) % 5
    x = around(labels, 4)
    theirs = AccuracyCalculator(include=THEIRS, k="max_bin_count", knn_func=KNN).get_accuracy(
        x, labels, x, labels, ref_includes_query=True
    )
    ours = retrieval(x, labels, x, labels, left_out_Q=torch.arange(30))
    for name in ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"):
        assert ours.mean(name, by_class=False) == pytest.approx(theirs[name], abs=1e-6), name
    assert not (ours.found.places_Qk == torch.arange(30)[:, None]).any()
    whole = average_precision(x, labels, x, labels, left_out_Q=torch.arange(30))
    assert np.isfinite(whole).all()
    assert (whole <= 1).all()


def test_classes_that_cannot_be_found_do_not_count():
    labels = torch.tensor([0, 1, 7])
    found = retrieval(around(labels, 1), labels, around(torch.tensor([0, 1, 1]), 2), torch.tensor([0, 1, 1]))
    assert found.counted.tolist() == [True, True, False]
    assert sorted(found.by_class("recall_at_1")) == [0, 1]
    nothing = retrieval(around(labels, 1), labels + 100, around(labels, 2), labels)
    assert np.isnan(nothing.mean("precision_at_1", by_class=True))


def test_empty_sides():
    x = around(torch.tensor([0, 1]), 0)
    with pytest.raises(ValueError, match="0 queries, 2 pictures"):
        retrieval(x[:0], torch.tensor([], dtype=torch.int64), x, torch.tensor([0, 1]))


def test_clusters_of_what_is_well_apart():
    labels = torch.arange(60) % 2
    told = clusters(around(labels, 1, noise=0.01), labels)
    assert told == pytest.approx({"AMI": 1.0, "NMI": 1.0})
    assert clusters(around(labels, 1, noise=0.01), torch.arange(60) // 30)["AMI"] < 0.3
