"""A tiny data set of scenes before and after, and a spec that trains on it in seconds."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from makers import with_changes, write_image

SIDE = 32


def write_scenes(root: Path, split: str, num: int, *, size=(SIDE, SIDE), seed=0, label=lambda changed: 255 * changed):
    """``num`` pairs whose later image has a bright square; ``label`` makes the mask's values of 0/1 ``(H, W)``."""
    rng = np.random.default_rng(seed)
    names = []
    for i in range(num):
        ground = rng.integers(40, 110, (*size, 3))
        after, changed = ground + rng.integers(-8, 8, ground.shape), np.zeros(size, dtype=np.uint8)
        top, left = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        after[top : top + 12, left : left + 12], changed[top : top + 12, left : left + 12] = 220, 1
        name = f"{split}_{i}.png"
        write_image(root / "A" / name, ground)
        write_image(root / "B" / name, after)
        write_image(root / "label" / name, label(changed))
        names.append(name)
    write_list(root, split, names)
    return names


def write_list(root: Path, split: str, names) -> Path:
    path = root / "list" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path


def tiny_spec(data: Path, results: Path, **changes) -> dict:
    """A spec as plain data; ``changes`` are dotted keys with ``__`` for the dots."""
    spec = {
        "task": "segment",
        "results_dir": str(results),
        "wandb": {"enable": False},
        "model": {
            "backbone": {"type": "fan_tiny_8_p4_hybrid"},
            "decode_head": {"decoder_params": {"embed_dim": 8}},
        },
        "dataset": {"segment": {"root_dir": str(data), "img_size": SIDE, "batch_size": 2, "workers": 0}},
        "train": {"num_epochs": 2, "optim": {"lr": 1e-3}},
    }
    return with_changes(spec, changes)


@pytest.fixture(scope="session")
def scene_data(tmp_path_factory) -> Path:
    """6 pairs to train on, 3 to validate, 3 to test; 32×32."""
    root = tmp_path_factory.mktemp("scenes")
    for seed, (split, num) in enumerate({"train": 6, "val": 3, "test": 3}.items()):
        write_scenes(root, split, num, seed=seed)
    return root


@pytest.fixture
def make_scenes():
    return write_scenes


@pytest.fixture
def make_list():
    return write_list


@pytest.fixture(scope="session")
def make_spec_tree():
    return tiny_spec


@pytest.fixture
def make_spec(scene_data, tmp_path):
    """A validated spec on ``scene_data``; keyword arguments change keys (``train__num_epochs=3``)."""
    from changenet.config import ExperimentSpec

    def make(data=scene_data, **changes):
        return ExperimentSpec.model_validate(tiny_spec(data, tmp_path / "results", **changes))

    return make


@pytest.fixture
def make_spec_file(scene_data, tmp_path):
    """Write a spec on ``scene_data`` as YAML; the results go to ``tmp_path / "results"``."""

    def make(data=scene_data, **changes) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(tiny_spec(data, tmp_path / "results", **changes)))
        return path

    return make
