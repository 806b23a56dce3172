"""Older spellings of MAL's specs: what is moved, and what is left for validation to name."""

import pytest

from fiducial.errors import SpecError
from mal.old_specs import unwrapped


@pytest.mark.parametrize(
    ("tree", "new"),
    [
        ({"model": {"crop_size": 8, "arch": "x"}}, {"model": {"arch": "x"}, "dataset": {"crop_size": 8}}),
        ({"model": {"crop_size": 8}, "dataset": 5}, {"model": {"crop_size": 8}, "dataset": 5}),
        ({"model": 3}, {"model": 3}),
        (
            {"gpus": 2, "train": 5},
            {"train": 5} | {n: {"num_gpus": 2, "gpu_ids": [0, 1]} for n in ("evaluate", "inference")},
        ),
    ],
)
def test_moved(tree, new):
    assert unwrapped(tree) == new


def test_a_key_at_both_places():
    same = {"model": {"crop_size": 8}, "dataset": {"crop_size": 8}}
    assert unwrapped(same) == {"model": {}, "dataset": {"crop_size": 8}}
    with pytest.raises(SpecError, match=r"model.load_mask · found True, and False at dataset.load_mask"):
        unwrapped({"model": {"load_mask": True}, "dataset": {"load_mask": False}})


@pytest.mark.parametrize("gpus", [None, "abc", 2_000_000_000, -1, 0, 1.5, True, {"a": 1}])
def test_gpus_that_are_none_are_handed_on(gpus):
    assert unwrapped({"gpus": gpus})["train"] == ({"num_gpus": gpus})


@pytest.mark.parametrize("stages", [["a"], [10**9], [None], [[1]], "x", 3, []])
def test_stages_that_are_none_are_handed_on(stages):
    tree = unwrapped({"autolabel_type": "mal", "mal": {"model": {"frozen_stages": stages}}})
    assert tree["model"] == {"frozen_stages": stages}


def test_the_last_of_a_range_of_stages():
    assert unwrapped({"mal": {"model": {"frozen_stages": [2]}}})["model"] == {"frozen_stages": [0, 1, 2]}


@pytest.mark.parametrize(
    "tree",
    [
        {"mal": {"inference": 3}},
        {"mal": {"model": "x"}},
        {"autolabel_type": "mal", "mal": [1]},
        {"mal": {"dataset": 5}},
    ],
)
def test_no_sections(tree):
    with pytest.raises(SpecError, match="this is a section"):
        unwrapped(tree)
