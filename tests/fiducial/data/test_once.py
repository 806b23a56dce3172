"""Lists are read once in a run, and always outside of one."""

import pytest

from fiducial.data.once import once, one_reading


@pytest.fixture
def read():
    calls = []

    def read(key):
        return once(key, lambda: calls.append(key) or [len(calls)])

    read.calls = calls
    return read


def test_within_a_run(read):
    with one_reading():
        assert read("a") is read("a")
        assert read("b") != read("a")
    assert read.calls == ["a", "b"]


def test_outside_and_in_the_next_run(read):
    read("a")
    read("a")
    for _ in range(2):
        with one_reading():
            read("a")
    read("a")
    assert len(read.calls) == 5


def test_what_fails_is_tried_again(read):
    with one_reading():
        with pytest.raises(ZeroDivisionError):
            once("a", lambda: 1 / 0)
        assert read("a") == [1]
