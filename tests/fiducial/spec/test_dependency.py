"""How TAO writes what a key depends on."""

import pytest

from fiducial.spec.dependency import Dependency


@pytest.mark.parametrize(
    ("text", "keys", "operator"),
    [
        ("a.b", ("a.b",), ""),
        ("a.b,a.c", ("a.b", "a.c"), ""),
        (" > a.b ", ("a.b",), ">"),
        (">=a.b[1] , c", ("a.b[1]", "c"), ">="),
        ("/ a", ("a",), "/"),
    ],
)
def test_parse(text, keys, operator):
    assert Dependency.parse(text) == Dependency(keys, operator)


@pytest.mark.parametrize("text", ["", ">", "a b", "a,", "=> a"])
def test_no_dependency(text):
    with pytest.raises(ValueError, match="does not name keys"):
        Dependency.parse(text)
