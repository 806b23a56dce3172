"""What is set before torch is imported, and what is left alone."""

import os

import pytest

from fiducial.run.threads import yield_when_idle

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def test_set():
    yield_when_idle()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_counts(monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    yield_when_idle()
    assert {other: os.environ[other] for other in NAMES if other in os.environ} == {name: "ACTIVE"}
