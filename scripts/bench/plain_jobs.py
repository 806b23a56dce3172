"""Whole jobs as a person writes them first: every picture opened and resized, a plain loop, a plain network.

Each job reads the spec of the project's own run and writes what that writes: a checkpoint, numbers, scores or masks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from plain import PlainClassifier, PlainSegmenter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize, to_tensor  # type: ignore[import-untyped]

from changenet.classify.model import build_classifier
from changenet.segment.losses import cross_entropy, multi_scale
from changenet.segment.model import build_segmenter

__all__ = ["JOBS"]

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


class Classify:
    """The learnable classifier."""

    prefix = "changenet_model_classify"

    def __init__(self, spec: Spec) -> None:
        self.spec, self.data = spec, spec["dataset"]["classify"]
        size = self.data["image_height"] * len(self.data["input_map"]), self.data["image_width"]
        kind = spec["model"]["backbone"]["type"]
        self.network = build_classifier(backbone=kind, difference_module="learnable", image_size=size)
        self.forward = PlainClassifier(self.network)

    def rows(self, split: str) -> Pairs:
        return Pairs(self.spec, split)

    def sampler(self, rows: Any) -> Any:
        good = torch.tensor([row["label"] == "PASS" for row in rows.rows])
        weight = torch.where(good, 1.0, 0.1 * good.sum() / (~good).sum())
        return torch.utils.data.WeightedRandomSampler(weight.tolist(), len(rows))

    def loss(self, batch: Batch) -> Tensor:
        logits = self.forward(batch["test"], batch["golden"])
        return F.cross_entropy(logits, batch["label"], torch.tensor([1.0, 10.0]))

    def outputs(self, batch: Batch) -> Tensor:
        scores: Tensor = self.forward(batch["test"], batch["golden"]).softmax(1)[:, 1]
        return scores

    def evaluated(self, found: list[Tensor], rows: Any) -> dict[str, float]:
        label = np.array([row["label"] != "PASS" for row in rows.rows])
        failed = torch.cat(found).numpy() > self.spec["model"]["classify"]["eval_margin"]
        return {"accuracy": float((failed == label).mean())}

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
        if self.labelled:
            with Image.open(self.folder / "label" / name) as image:
                mask = np.asarray(image.convert("L").resize(side, Image.Resampling.NEAREST))
            item["label"] = torch.from_numpy((mask > 127).astype(np.int64))
        return item


class Segment:
    """The segmenter, trained on all scales."""

    prefix = "changenet_model_segment"

    def __init__(self, spec: Spec) -> None:
        self.spec, side = spec, spec["dataset"]["segment"]["img_size"]
        self.data = spec["dataset"]["segment"]
        self.network = build_segmenter(backbone=spec["model"]["backbone"]["type"], image_size=(side, side))
        self.forward = PlainSegmenter(self.network)

    def rows(self, split: str) -> Scenes:
        return Scenes(self.spec, split)

    def sampler(self, rows: Any) -> Any:
        return torch.utils.data.RandomSampler(rows)

    def loss(self, batch: Batch) -> Tensor:
        found = self.forward(batch["A"], batch["B"])
        return multi_scale(found, batch["label"], (0.5, 0.5, 0.5, 0.8, 1.0), cross_entropy)

    def outputs(self, batch: Batch) -> Tensor:
        masks: Tensor = self.forward(batch["A"], batch["B"])[-1].argmax(1).to(torch.uint8)
        return masks

    def evaluated(self, found: list[Tensor], rows: Any) -> dict[str, float]:
        label = torch.stack([rows[index]["label"] for index in range(len(rows))])
        mask = torch.cat(found)
        return {"accuracy": float((mask == label).double().mean())}

    def write(self, found: list[Tensor], rows: Any, folder: Path) -> None:
        for name, mask in zip(rows.rows, torch.cat(found).numpy(), strict=True):
            Image.fromarray(mask * 255).save(folder / name)


Job = Classify | Segment


def loader(job: Job, split: str) -> DataLoader[Batch]:
    rows = job.rows(split)
    sampler = job.sampler(rows) if split == "train" else None
    return DataLoader(
        rows,
        batch_size=job.data["batch_size"],
        num_workers=job.data["workers"],
        sampler=sampler,
        drop_last=split == "train",
    )


def train(job: Job, folder: Path) -> None:
    """An epoch, a pass over the validation rows, and a checkpoint."""
    network: nn.Module = job.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)
    network.train()
    for batch in loader(job, "train"):
        optimizer.zero_grad()
        loss = job.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval()
    with torch.no_grad():
        losses = [float(job.loss(batch)) for batch in loader(job, "validation")]
    state = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / f"{job.prefix}_latest.pth")
    (folder / "numbers.json").write_text(json.dumps({"val_loss": float(np.mean(losses))}))


@torch.no_grad()
def predicted(job: Job, split: str, checkpoint: Path) -> Iterator[Tensor]:
    """Outputs of a model that was trained."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    job.network.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    job.network.eval()
    for batch in loader(job, split):
        yield job.outputs(batch)


def evaluate(job: Job, folder: Path) -> None:
    found = list(predicted(job, "test", Path(job.spec["evaluate"]["checkpoint"])))
    (folder / "numbers.json").write_text(json.dumps(job.evaluated(found, job.rows("test"))))


def inference(job: Job, folder: Path) -> None:
    found = list(predicted(job, "infer", Path(job.spec["inference"]["checkpoint"])))
    job.write(found, job.rows("infer"), folder)


JOBS: dict[str, Callable[[Spec], Job]] = {"classify": Classify, "segment": Segment}
ACTIONS: dict[str, Callable[[Job, Path], None]] = {"train": train, "evaluate": evaluate, "inference": inference}
