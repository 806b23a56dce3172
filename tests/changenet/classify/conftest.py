"""A tiny data set of pairs, and a spec that trains on it in seconds."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from makers import with_changes, write_image

LIGHTS = ("SolderLight", "WhiteLight")


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_pairs(folder: Path, num_rows: int, *, seed: int = 0, goldens: int = 4, split: str = "train") -> Path:
    """``<split>.csv``: every third row is a defect (a dark square); ``goldens`` goldens are shared by all rows."""
    rng = np.random.default_rng(seed)
    for golden in range(goldens):
        picture = np.random.default_rng(golden).integers(60, 200, (32, 32, 3))
        for light in LIGHTS:
            write_image(folder / "golden" / f"{golden:04d}_{light}.png", picture)
    rows = []
    for row in range(num_rows):
        golden, defect = row % goldens, row % 3 == 2
        for number, light in enumerate(LIGHTS):
            picture = np.random.default_rng(golden).integers(60, 200, (32, 32, 3)) + rng.integers(-8, 8, (32, 32, 3))
            if defect:
                picture[8:24, 8:24] = 10 + number
            write_image(folder / split / f"b{row}" / f"{golden:04d}_{light}.png", picture)
        rows.append(
            {
                "input_path": f"{split}/b{row}",
                "golden_path": "golden",
                "label": "MISSING" if defect else "PASS",
                "object_name": f"{golden:04d}",
                "note": f"row, {row}",
            }
        )
    return write_csv(folder / f"{split}.csv", rows)


def tiny_spec(data: Path, results: Path, **changes) -> dict:
    """A spec as plain data; ``changes`` are dotted keys with ``__`` for the dots."""
    spec = {
        "task": "classify",
        "results_dir": str(results),
        "wandb": {"enable": False},
        "model": {
            "backbone": {"type": "fan_tiny_8_p4_hybrid"},
            "decode_head": {"feature_strides": [4, 8, 16, 16], "decoder_params": {"embed_dim": 16}},
            "classify": {"difference_module": "learnable", "embed_dec": 8, "eval_margin": 0.5},
        },
        "dataset": {
            "classify": {
                **{
                    f"{name}_dataset": {"csv_path": str(data / f"{split}.csv"), "images_dir": str(data)}
                    for name, split in (("train", "train"), ("validation", "val"), ("test", "val"), ("infer", "val"))
                },
                "image_ext": ".png",
                "input_map": {light: number for number, light in enumerate(LIGHTS)},
                "num_input": len(LIGHTS),
                "concat_type": "linear",
                "image_width": 32,
                "image_height": 32,
                "batch_size": 4,
                "workers": 0,
                "fpratio_sampling": 0.5,
            }
        },
        "train": {"num_epochs": 2, "classify": {"loss": "ce", "cls_weight": [1.0, 2.0]}, "optim": {"lr": 1e-3}},
        "evaluate": {"bootstrap": 20},
    }
    return with_changes(spec, changes)


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory) -> Path:
    """24 rows to train on (``train.csv``), 11 to validate (``val.csv``), two lights of 32×32."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 24)
    write_pairs(folder, 11, seed=1, split="val")
    return folder


@pytest.fixture
def make_pairs():
    return write_pairs


@pytest.fixture
def make_csv():
    return write_csv


@pytest.fixture(scope="session")
def make_spec_tree():
    return tiny_spec


@pytest.fixture
def make_spec(pair_data, tmp_path):
    """A validated spec on ``pair_data``; keyword arguments change keys (``train__num_epochs=3``)."""
    from changenet.config import ExperimentSpec

    return lambda **changes: ExperimentSpec.model_validate(tiny_spec(pair_data, tmp_path / "results", **changes))


@pytest.fixture
def make_spec_file(pair_data, tmp_path):
    """Write a spec on ``pair_data`` as YAML; the results go to ``tmp_path / "results"``."""

    def make(name: str = "spec.yaml", **changes) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(tiny_spec(pair_data, tmp_path / "results", **changes)))
        return path

    return make
