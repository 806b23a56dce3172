"""When a picture is of no class of the gallery."""

import numpy as np
import pytest
import torch

from mlrecog.open_set import is_known, open_set


def test_the_rule():
    nearest, rival = torch.tensor([0.1, 0.3, 0.1]), torch.tensor([0.5, 0.9, 0.12])
    assert is_known(nearest, rival, None, None).tolist() == [True, True, True]
    assert is_known(nearest, rival, 0.2, None).tolist() == [True, False, True]
    assert is_known(nearest, rival, 0.2, 0.05).tolist() == [True, False, False]


def test_what_is_apart_is_told_apart():
    found = open_set(np.array([0.1, 0.2]), np.array([0.8, 1.0]))
    assert found.auroc == 1.0
    assert found.balanced_accuracy == 1.0
    assert found.threshold == pytest.approx(0.5)  # midway between 0.2 and 0.8
    assert found.margin == 0.0


def test_by_hand():
    """Three queries: right at 0.1 and 0.3, and one whose own class (0.6) is farther than another (0.2)."""
    found = open_set(np.array([0.1, 0.3, 0.6]), np.array([0.5, 0.7, 0.2]))
    assert found.known.tolist() == pytest.approx([0.1, 0.3, 0.2])
    # pairs of a known and a stranger distance: 0.1 < all three, 0.3 < two of them, 0.2 < two and equal to one
    assert found.auroc == pytest.approx((3 + 2 + 2.5) / 9)
    # between 0.3 and 0.5: both right ones are accepted, and one of three strangers
    assert found.threshold == pytest.approx(0.4)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 2 / 3) / 2)
    at = np.argmin(np.abs(found.thresholds - 0.4))
    assert (found.true_accept_T[at], found.false_accept_T[at]) == pytest.approx((2 / 3, 1 / 3))
    # gaps: right 0.4 and 0.4, wrong 0.4: no margin helps
    assert 0 <= found.margin <= 0.4


def test_a_margin_that_refuses_what_is_wrong():
    found = open_set(np.array([0.1, 0.1, 0.30]), np.array([0.9, 0.8, 0.25]))
    assert 0.05 < found.margin < 0.7


def test_curves_rise():
    rng = np.random.default_rng(0)
    found = open_set(rng.random(50), rng.random(50))
    assert (np.diff(found.true_accept_T) >= 0).all()
    assert (np.diff(found.false_accept_T) >= 0).all()
    assert found.false_accept_T[-1] == 1.0


@pytest.mark.parametrize("own", [[], [np.inf, np.inf]])
def test_nothing_to_tell(own):
    found = open_set(np.array(own), np.full(len(own), 0.3))
    assert found.threshold is None
    assert np.isnan(found.auroc)
