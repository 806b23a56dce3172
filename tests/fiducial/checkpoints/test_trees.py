import pytest

from fiducial.checkpoints.trees import MAX_DEPTH, walkable


def nested(depth):
    tree = {"end": 1}
    for _ in range(depth):
        tree = {"inner": [tree]}
    return tree


def test_a_plain_tree_is_itself():
    tree = {"a": [1, (2, 3)], "b": {"c": {4}}}
    assert walkable(tree) is tree


def test_a_part_that_holds_itself_is_cut_there():
    tree = {"weights": 1, "list": [2]}
    tree["again"] = tree
    tree["list"].append(tree)
    assert walkable(tree) == {"weights": 1, "list": [2, None], "again": None}


def test_shared_parts_stay_shared():
    part = [1, 2]
    cyclic = {"one": part, "two": part}
    cyclic["cycle"] = cyclic
    made = walkable(cyclic)
    assert made["one"] is made["two"]


def test_depth_is_bounded():
    assert walkable(nested(MAX_DEPTH // 2 - 1))
    with pytest.raises(ValueError, match="deep"):
        walkable(nested(MAX_DEPTH))


def test_what_unfolds_without_end_is_refused():
    tree = [0] * 10
    for _ in range(40):  # 10 * 2 ** 40 entries in forty lists
        tree = [tree, tree]
    with pytest.raises(ValueError, match="without end"):
        walkable(tree)
