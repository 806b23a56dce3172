"""Weights to begin with may be named as what an earlier run left: a folder, or a word that chooses among its files."""

from functools import reduce
from pathlib import Path

import pytest

from changenet.classify.task import CLASSIFY
from changenet.segment.task import SEGMENT
from fiducial.actions.models import with_start_weights
from fiducial.errors import CheckpointError
from fiducial.spec.compose import Source, compose
from fiducial.spec.knob import walk
from mal.task import MAL
from mlrecog.task import ML_RECOG

CASES = [
    (task, key.path)
    for task in (CLASSIFY, SEGMENT, MAL, ML_RECOG)
    for key in walk(task.spec_model())
    if key.meta.weights
]


def tree(path, value, **more):
    nested = reduce(lambda inner, part: {part: inner}, reversed(path.split(".")), value)
    return {**more, **nested}


def composed(task, path, value, results_dir=""):
    return compose(task.spec_model(), Source(tree(path, value, results_dir=str(results_dir))), action="train")


def value_at(spec, path):
    return reduce(getattr, path.split("."), spec)


def ids(case):
    return f"{case[0].name} {case[1]}"


@pytest.fixture
def parent(tmp_path):
    """Makes what a run of a task leaves: a best and two other checkpoints."""

    def make(task):
        folder = tmp_path / "parent"
        (folder / "train").mkdir(parents=True)
        for name in ("model_epoch_000_step_00005.pth", "model_epoch_001_step_00010.pth", f"{task.prefix}_best.pth"):
            (folder / "train" / name).write_bytes(b"weights")
        (folder / "train" / f"{task.prefix}_latest.pth").symlink_to("model_epoch_001_step_00010.pth")
        return folder

    return make


def test_every_key_of_weights_is_marked():
    paths = {
        (task.network, key.path)
        for task in (CLASSIFY, MAL, ML_RECOG)
        for key in walk(task.spec_model())
        if "pretrained" in key.path and key.path.endswith("_path")
    }
    assert paths == {(task.network, path) for task, path in CASES}
    assert len(paths) == 6


@pytest.mark.parametrize("case", CASES, ids=ids)
class TestWeightsToBeginWith:
    def test_of_a_runs_folder(self, case, parent):
        task, path = case
        folder, told = parent(task), []
        for named in (folder, folder / "train"):
            spec = with_start_weights(task, composed(task, path, str(named)), told.append)
            assert Path(value_at(spec, path)).name == f"{task.prefix}_best.pth"
        assert told[0].startswith(f"{path}: {folder / 'train'}")
        assert "best" in told[0]

    def test_of_the_runs_own_root(self, case, parent):
        task, path = case
        folder = parent(task)
        spec = with_start_weights(task, composed(task, path, "epoch:0", results_dir=folder))
        assert Path(value_at(spec, path)) == folder / "train" / "model_epoch_000_step_00005.pth"

    def test_a_file_a_hub_id_and_a_clone_stay(self, case, tmp_path):
        task, path = case
        (tmp_path / "clone").mkdir()
        (tmp_path / "clone" / "model.safetensors").write_bytes(b"weights")
        told = []
        for named in (str(tmp_path / "w.pth"), "owner/name", "https://host/w.pth", str(tmp_path / "clone"), None):
            assert value_at(with_start_weights(task, composed(task, path, named), told.append), path) == named
        assert told == []

    def test_an_empty_folder(self, case, tmp_path):
        task, path = case
        with pytest.raises(CheckpointError, match=path):
            with_start_weights(task, composed(task, path, str(tmp_path)))
