"""ChangeNet classify: from CSV and picture files to the tensors of a batch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from changenet.classify.config import ClassifyDataset
from changenet.classify.data import PairDataset
from changenet.classify.rows import read_pairs
from changenet.classify.transform import normalization
from parity_cases import Case, Output, recipe, runs


@runs("oi_data")
def pairs(case: Case) -> Mapping[str, Output]:
    """img0, img1 and label ``(B, 1)`` of all rows as one batch, through the dataset that training uses."""
    with TemporaryDirectory() as folder:
        dataset = _dataset(case, Path(folder))
        items = [dataset[row] for row in range(len(dataset))]
    return {
        "img0": torch.stack([item["test"] for item in items]),
        "img1": torch.stack([item["golden"] for item in items]),
        "label": torch.stack([item["label"] for item in items])[:, None],
    }


def _dataset(case: Case, folder: Path) -> PairDataset:
    for file in case.manifest["files"]:
        path = folder / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = {name: value for name, value in file.items() if name != "path"}
        pixels = recipe.uint8_image(**arguments)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    rows = case.manifest["csv"]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files = {"csv_path": str(folder / "pairs.csv"), "images_dir": str(folder)}
    config = ClassifyDataset.model_validate({**case.config, "test_dataset": files})
    return PairDataset(read_pairs(config, "test"), normalization(config.augmentation_config, "", clip=False))
