"""Arithmetic in a spec, and the name of an action's folder."""

import pytest

from fiducial.spec.interpolation import arithmetic, folder_of


class TestArithmetic:
    @pytest.mark.parametrize(
        ("text", "value"), [("2 * (3 + 4)", 14), ("7 / 2", 3.5), ("7 // 2", 3), ("-7 % 4", 1), ("+.5", 0.5)]
    )
    def test_hand_computed(self, text, value):
        assert arithmetic(text) == value

    @pytest.mark.parametrize("text", ["__import__('os')", "2 ** 9", "'a'", "x", "1 / 0", "True"])
    def test_no_code(self, text):
        with pytest.raises(ValueError, match=r".+"):
            arithmetic(text)


class TestFolderOf:
    def test_without_a_name_it_is_the_action(self):
        assert folder_of({"evaluate": {"checkpoint": "a"}}, "evaluate", {}, None) == "evaluate"

    @pytest.mark.parametrize("section", [None, "", 3, ["a"]])
    def test_no_section_is_an_empty_one(self, section):
        assert folder_of({"evaluate": section}, "evaluate", {}, str) == "{}"

    def test_section(self):
        own = {"a": "${b}/x", "c": ["/data/y"], "d": "${nothing}/z", "e": "???", "f": None, "g": {"h": "${b}"}}
        told = {"a": "/here/x", "c": ["/here/y"], "d": "${nothing}/z", "f": None, "g": {"h": "/here"}}
        assert folder_of({"b": "/data", "evaluate": own}, "evaluate", {"/data": "/here"}, str) == str(told)
