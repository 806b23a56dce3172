"""Splits are read once, and again when their file has changed."""

import json

import pytest

from mal.config import ExperimentSpec
from mal.splits import read_split


@pytest.fixture
def spec(make_tree, pictures, tmp_path):
    path = tmp_path / "ann.json"
    path.write_text((pictures / "val" / "ann.json").read_text())
    return ExperimentSpec.model_validate(make_tree(tmp_path, dataset__val_ann_path=str(path)))


def test_a_file_is_read_once(spec):
    assert read_split(spec, "val").annotations is read_split(spec, "val").annotations


def test_a_file_that_has_changed_is_read_again(spec, tmp_path):
    before = read_split(spec, "val")
    tree = json.loads((tmp_path / "ann.json").read_text())
    del tree["annotations"][1:]
    (tmp_path / "ann.json").write_text(json.dumps(tree))
    assert len(before.selection.boxes) == 6
    assert len(read_split(spec, "val").selection.boxes) == 1
