"""The name of an action's folder."""

import pytest

from fiducial.spec.interpolation import folder_of


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
