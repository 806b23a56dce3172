"""Folders of a container as folders of this machine."""

import pytest

from fiducial.errors import SpecError
from fiducial.spec.path_map import map_path, mapped, parse_path_map, use_path_map


def test_longest_folder_wins_and_names_are_whole():
    mapped = parse_path_map(["/data=./d", "/data/deep/=/x", "/=/root"])
    assert mapped == {"/data": "./d", "/data/deep": "/x", "/": "/root"}
    values = ("/data", "/data/a", "/data/deep/a", "/database/a", "data/a")
    assert [map_path(value, mapped) for value in values] == ["./d", "./d/a", "/x/a", "/root/database/a", "data/a"]


@pytest.mark.parametrize("entry", ["/data", "=/x", "/data="])
def test_entry_that_is_none(entry):
    with pytest.raises(SpecError, match="FROM=TO"):
        parse_path_map([entry])


def test_paths_in_files_follow_the_map_in_force():
    try:
        use_path_map({"/data": "./d"})
        assert mapped("/data/a") == "./d/a"
        use_path_map({"/other": "/o"})
        assert [mapped(path) for path in ("/data/a", "/other/a")] == ["/data/a", "/o/a"]
    finally:
        use_path_map({})
    assert mapped("/other/a") == "/other/a"
