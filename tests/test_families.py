"""A checkpoint of one network that is given to another is called what it is."""

import importlib
import tomllib
from pathlib import Path

import pytest
import torch

from fiducial.checkpoints import keys
from fiducial.errors import UserError

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
POINTS = DECLARED[keys.FAMILIES_GROUP]
NETWORKS = {
    "MAL": [f"{side}.{part}" for side in ("student", "teacher") for part in ("mask_head.convs.0.x", "roi_head.mlp1.x")],
    "ChangeNet segment": ["decoder.change_probability.conv2d.weight"],
    "ChangeNet classify": ["backbone.x", "fc1.0.weight"],
    "ML Recog": ["embedder.net.0.weight", "trunk.conv1.weight"],
}


@pytest.fixture
def all_families(monkeypatch):
    """Those of the source, which may be newer than the installed entry points."""
    found = [getattr(importlib.import_module(where.split(":")[0]), where.split(":")[1]) for where in POINTS.values()]
    monkeypatch.setattr(keys, "network_families", lambda: tuple(family for part in found for family in part))


def test_every_package_declares_its_own():
    modules = {path.parent.name: f"{path.parent.name}.families:FAMILIES" for path in ROOT.glob("*/families.py")}
    assert modules == POINTS


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_each_is_told_from_the_others(all_families, name, prefix):
    assert keys.family_of(prefix + key for key in NETWORKS[name]) == name


def test_a_student_alone_is_mal(all_families):
    assert keys.family_of(NETWORKS["MAL"][:2]) == "MAL"


@pytest.mark.parametrize("name", NETWORKS)
def test_load_names_a_stranger(all_families, tmp_path, name):
    package = "changenet" if name == "MAL" else "mal"
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {key: torch.zeros(1) for key in NETWORKS[name]}}, path)
    with pytest.raises(UserError, match=f"{name}, no "):
        importlib.import_module(package).load(path)


@pytest.mark.parametrize("name", ["ChangeNet segment", "ChangeNet classify"])
def test_evaluate_of_mal_names_a_stranger(all_families, tmp_path, name):
    from fiducial.checkpoints.reading import read
    from mal.weights import load_networks

    path = tmp_path / "model.pth"
    torch.save({"state_dict": {key: torch.zeros(1) for key in NETWORKS[name]}}, path)
    with pytest.raises(UserError, match=f"{name}, no MAL checkpoint"):
        load_networks(None, None, read(path))  # refused before a network is looked at
