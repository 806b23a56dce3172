"""Lines about long work."""

import logging

import pytest

from fiducial import progress
from fiducial.progress import Pace, clock, followed


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_line_every_ten_seconds(now, caplog):
    caplog.set_level(logging.INFO, "fiducial")
    for _ in followed(range(30), "looking:", total=30):
        now[0] += 1.0
    seconds = {10: 20, 20: 10, 30: 0}
    assert caplog.messages == [f"looking: {done}/30, 1.0/s, left 0:00:{left:02d}" for done, left in seconds.items()]


def test_nothing_of_what_is_quick(now, caplog):
    caplog.set_level(logging.INFO, "fiducial")
    assert list(followed("abc", "x", total=3)) == ["a", "b", "c"]
    assert not caplog.messages


def test_pace(now):
    pace = Pace(100)
    now[0] += 4
    assert not pace.step(20)
    assert (pace.rate, pace.left) == (5.0, "0:00:16")
    now[0] += 6
    assert pace.step(20)
    assert (pace.rate, pace.left) == (4.0, "0:00:15")
    assert not pace.step()


def test_how_much_there_is_may_not_be_known(now):
    now[0] += 1
    assert Pace().left == "unknown"


def test_clock():
    assert [clock(0.4), clock(61.6), clock(90_000)] == ["0:00:00", "0:01:02", "1 day, 1:00:00"]
