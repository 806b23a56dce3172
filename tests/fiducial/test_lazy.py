"""A package's names are imported when they are used."""

import sys
import types

import pytest

from fiducial.lazy import lazy


@pytest.fixture
def package(monkeypatch):
    made = types.ModuleType("made_up")
    made.__getattr__, made.__dir__ = lazy("made_up", {"sqrt": "cmath", "gone": "made_up_nowhere"})
    monkeypatch.setitem(sys.modules, "made_up", made)
    return made


def test_a_name_is_that_of_its_module(package):
    assert package.sqrt(-1) == 1j


def test_nothing_is_imported_before(package):
    with pytest.raises(ModuleNotFoundError, match="made_up_nowhere"):
        package.gone  # noqa: B018


def test_other_names(package):
    with pytest.raises(AttributeError, match="module 'made_up' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_all_are_listed(package):
    package.own = 1
    assert {"sqrt", "gone", "own"} <= set(dir(package))
