"""Jobs of ChangeNet as a person writes them first: what ``plain_jobs.py`` trains and runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from plain import PlainClassifier, PlainSegmenter
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, WeightedRandomSampler
from torchvision.transforms.functional import normalize, to_tensor  # type: ignore[import-untyped]

from changenet.classify.model import build_classifier
from changenet.segment.losses import cross_entropy, multi_scale
from changenet.segment.model import build_segmenter

__all__ = ["Classify", "Segment"]

Spec = dict[str, Any]
Batch = dict[str, Tensor]


def picture(path: Path, side: tuple[int, int], norm: tuple[list[float], list[float]]) -> Tensor:
    """A normalised picture of a (height, width)."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((side[1], side[0]), Image.Resampling.BILINEAR)
    return normalize(to_tensor(resized), *norm)  # type: ignore[no-any-return]


class Pairs(Dataset[Batch]):
    """Rows of a classify CSV: every light of the part and of its golden, below one another."""

    def __init__(self, spec: Spec, split: str) -> None:
        self.data = spec["dataset"]["classify"]
        with open(self.data[f"{split}_dataset"]["csv_path"], newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        self.folder = Path(self.data[f"{split}_dataset"]["images_dir"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        test, golden = (self._lights(row[column], row["object_name"]) for column in ("input_path", "golden_path"))
        return {"test": test, "golden": golden, "label": torch.tensor(int(row["label"] != "PASS"))}

    def _lights(self, folder: str, part: str) -> Tensor:
        side = self.data["image_height"], self.data["image_width"]
        norm = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        files = (self.folder / folder / f"{part}_{light}{self.data['image_ext']}" for light in self.data["input_map"])
        return torch.cat([picture(path, side, norm) for path in files], dim=1)


class Pair:
    """What both jobs share."""

    part = "model."
    network: nn.Module

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.workers, self.batch_size = data, data["workers"], data["batch_size"]

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.01)

    def after_step(self) -> None:
        """Nothing."""


class Classify(Pair):
    """The learnable classifier."""

    prefix = "changenet_model_classify"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec["dataset"]["classify"])
        self.spec = spec
        size = self.data["image_height"] * len(self.data["input_map"]), self.data["image_width"]
        kind = spec["model"]["backbone"]["type"]
        self.network = build_classifier(backbone=kind, difference_module="learnable", image_size=size)
        self.forward = PlainClassifier(self.network)

    def rows(self, split: str) -> Pairs:
        return Pairs(self.spec, split)

    def batches(self, rows: Any) -> dict[str, Any]:
        good = torch.tensor([row["label"] == "PASS" for row in rows.rows])
        weight = torch.where(good, 1.0, 0.1 * good.sum() / (~good).sum())
        return {"sampler": WeightedRandomSampler(weight.tolist(), len(rows)), "drop_last": True}

    def loss(self, batch: Batch) -> Tensor:
        logits = self.forward(batch["test"], batch["golden"])
        return F.cross_entropy(logits, batch["label"], torch.tensor([1.0, 10.0]))

    def outputs(self, batch: Batch) -> Tensor:
        scores: Tensor = self.forward(batch["test"], batch["golden"]).softmax(1)[:, 1]
        return scores

    def evaluated(self, found: list[Tensor], rows: Any) -> dict[str, float]:
        label = np.array([row["label"] != "PASS" for row in rows.rows])
        failed = torch.cat(found).numpy() > self.spec["model"]["classify"]["eval_margin"]
        return {"test_acc": 100 * float((failed == label).mean())}

    def write(self, found: list[Tensor], rows: Any, folder: Path) -> None:
        with (folder / "inference.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*rows.rows[0], "siamese_score"])
            for row, score in zip(rows.rows, torch.cat(found).tolist(), strict=True):
                writer.writerow([*row.values(), score])


class Scenes(Dataset[Batch]):
    """Two images of a place, and what changed."""

    def __init__(self, spec: Spec, split: str) -> None:
        self.data = spec["dataset"]["segment"]
        self.folder = Path(self.data["root_dir"])
        named = {"train": "train", "validation": "val", "test": "test", "infer": "predict"}[split]
        self.rows = (self.folder / "list" / f"{named}.txt").read_text().split()
        self.labelled = split != "infer"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        side = self.data["img_size"], self.data["img_size"]
        halves = [0.5] * 3, [0.5] * 3
        name = self.rows[index]
        item = {key: picture(self.folder / key / name, side, halves) for key in ("A", "B")}
        return item | ({"label": self.label(name)} if self.labelled else {})

    def label(self, name: str) -> Tensor:
        side = self.data["img_size"], self.data["img_size"]
        with Image.open(self.folder / "label" / name) as image:
            mask = np.asarray(image.convert("L").resize(side, Image.Resampling.NEAREST))
        return torch.from_numpy((mask > 127).astype(np.int64))


class Segment(Pair):
    """The segmenter, trained on all scales."""

    prefix = "changenet_model_segment"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec["dataset"]["segment"])
        self.spec, side = spec, self.data["img_size"]
        self.network = build_segmenter(backbone=spec["model"]["backbone"]["type"], image_size=(side, side))
        self.forward = PlainSegmenter(self.network)

    def rows(self, split: str) -> Scenes:
        return Scenes(self.spec, split)

    def batches(self, rows: Any) -> dict[str, Any]:
        return {"sampler": RandomSampler(rows), "drop_last": True}

    def loss(self, batch: Batch) -> Tensor:
        found = self.forward(batch["A"], batch["B"])
        return multi_scale(found, batch["label"], (0.5, 0.5, 0.5, 0.8, 1.0), cross_entropy)

    def outputs(self, batch: Batch) -> Tensor:
        masks: Tensor = self.forward(batch["A"], batch["B"])[-1].argmax(1).to(torch.uint8)
        return masks

    def evaluated(self, found: list[Tensor], rows: Any) -> dict[str, float]:
        label = torch.stack([rows.label(name) for name in rows.rows])
        mask = torch.cat(found)
        return {"test_acc": float((mask == label).double().mean())}

    def write(self, found: list[Tensor], rows: Any, folder: Path) -> None:
        for name, mask in zip(rows.rows, torch.cat(found).numpy(), strict=True):
            Image.fromarray(mask * 255).save(folder / name)
