"""The rate of an epoch."""

from itertools import pairwise

import pytest

from mlrecog.schedule import warmup_steps_factor

OPTIONS = {"steps": [4, 6], "gamma": 0.1, "warmup_factor": 0.2, "warmup_iters": 4, "method": "linear"}


def factors(epochs=8, **changes):
    return [warmup_steps_factor(epoch, **OPTIONS | changes) for epoch in range(epochs)]


def test_a_line_then_steps():
    assert factors() == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.1, 0.1, 0.01, 0.01])


def test_constant_warm_up():
    assert factors(method="constant") == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.01, 0.01])


def test_steps_count_during_the_warm_up():
    assert factors(4, steps=[2]) == pytest.approx([0.2, 0.4, 0.06, 0.08])


@pytest.mark.parametrize("changes", [{"warmup_iters": 0}, {"warmup_factor": 1.0}])
def test_without_warm_up(changes):
    assert factors(5, **changes) == pytest.approx([1, 1, 1, 1, 0.1])


def test_a_step_twice_counts_twice():
    assert factors(5, steps=[4, 4])[4] == pytest.approx(0.01)


def test_the_rate_only_rises_in_the_warm_up_and_only_falls_after_it():
    rates = factors(30, steps=[12, 20], warmup_iters=10)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
