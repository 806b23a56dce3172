"""Plain data of bounded size: what is copied, and what is refused."""

import datetime
from pathlib import Path

import pytest

from fiducial.errors import SpecError
from fiducial.spec.bounded import MAX_DEPTH, MAX_SIZE, Budget, bounded, brief


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def holding_itself():
    value = {}
    value["a"] = value
    return value


class TestCopy:
    def test_plain(self):
        tree = {"a": [1, 2.5, None, True], 3: (Path("x"), {None: "y", False: 0})}
        assert bounded(tree, "spec") == {"a": [1, 2.5, None, True], "3": ["x", {"null": "y", "false": 0}]}

    def test_nothing_is_shared(self):
        inner = [1]
        copy = bounded({"a": inner, "b": inner}, "spec")
        copy["a"].append(2)
        assert (copy["b"], inner) == ([1], [1])

    def test_depth(self):
        assert bounded(nested(MAX_DEPTH), "spec") == nested(MAX_DEPTH)


class TestRefusals:
    @pytest.mark.parametrize(
        ("value", "found"),
        [
            *((nested(MAX_DEPTH + 1), "nested"), (nested(5000), "nested"), (holding_itself(), "nested")),
            *((2**63, "more than 64 bits"), (-(2**63), "more than 64 bits"), (10**400, "more than 64 bits")),
            *(("a\0b", r"U\+0000"), ("\ud800", r"U\+D800"), ({"\udfff": 1}, r"U\+DFFF")),
            *((b"x", "a bytes"), ({1}, "a set"), (object(), "a object"), (datetime.date(2026, 1, 1), "a date")),
            *(("x" * MAX_SIZE, "MiB"), ([0] * MAX_SIZE, "MiB"), ({"k" * MAX_SIZE: 1}, "MiB")),
        ],
    )
    def test_names_the_key(self, value, found):
        with pytest.raises(SpecError, match=f"^(key|spec) · .*{found}") as caught:
            bounded({"key": value}, "spec")
        assert len(str(caught.value)) < 300

    def test_what_aliases_would_become(self):
        bomb = ["x"]
        for _ in range(40):
            bomb = [bomb, bomb]
        with pytest.raises(SpecError, match=r"nested|MiB"):
            bounded(bomb, "spec")

    def test_a_budget_for_several(self):
        budget = Budget(1000)
        bounded("x" * 600, "one", budget=budget)
        with pytest.raises(SpecError, match="two"):
            bounded("x" * 600, "two", budget=budget)


@pytest.mark.parametrize(("value", "shown"), [([1], "a list"), ({}, "a dict"), ("a'b", '"a\'b"'), (1.5, "1.5")])
def test_brief(value, shown):
    assert brief(value) == shown
    assert len(brief("x" * 10**6)) < 300
