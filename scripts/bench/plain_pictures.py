"""Jobs of MAL and ML Recog as a person writes them first: what ``plain_jobs.py`` trains and runs."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from plain import plain_functions, unfolded_field
from pycocotools import mask as coco_mask
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler
from torchvision import transforms as T  # type: ignore[import-untyped]
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.models import resnet50  # type: ignore[import-untyped]

from mal.crop import crop_around
from mal.model import build_labeler
from mal.training import Objective
from mlrecog.model import build_recognizer

__all__ = ["Label", "Recognize"]

Spec = dict[str, Any]
Batch = dict[str, Tensor]
MEAN = [0.485, 0.456, 0.406]


# --- MAL -------------------------------------------------------------------------------------------------------------


class Boxes(Dataset[Batch]):
    """Annotations of a COCO file, each with a crop of its picture that is opened for it."""

    normalize = T.Compose([T.ToTensor(), T.Normalize(MEAN, [0.229, 0.224, 0.225])])
    colours = T.Compose(
        [
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.5),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(13, (0.1, 2.0))], 0.5),
        ]
    )

    def __init__(self, spec: Spec, annotations: str, images: str, *, train: bool) -> None:
        self.side, self.folder, self.train = spec["dataset"]["crop_size"], Path(images), train
        self.tree = json.loads(Path(annotations).read_text())
        self.rows = self.tree["annotations"]
        self.pictures = {picture["id"]: picture for picture in self.tree["images"]}

    def __len__(self) -> int:
        return len(self.rows)

    def corners(self, row: Any) -> tuple[float, float, float, float]:
        x, y, width, height = row["bbox"]
        return x, y, x + width, y + height

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        x0, y0, x1, y1 = box = self.corners(row)
        with Image.open(self.folder / self.pictures[row["image_id"]]["file_name"]) as opened:
            image = np.asarray(opened.convert("RGB"))
        crop = crop_around(box, np.random.uniform(0, 1.2, 4).tolist() if self.train else [0.3] * 4)
        inside = np.zeros(image.shape[:2], np.uint8)
        inside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = 1
        rows, columns = np.arange(crop.y0, crop.y1), np.arange(crop.x0, crop.x1)
        around = image[rows[:, None] % image.shape[0], columns % image.shape[1]]
        there = np.outer((rows >= 0) & (rows < image.shape[0]), (columns >= 0) & (columns < image.shape[1]))
        masked = inside[rows[:, None] % image.shape[0], columns % image.shape[1]] * there
        picture, mask = (
            Image.fromarray(part).resize((self.side, self.side), Image.Resampling.BICUBIC) for part in (around, masked)
        )
        if self.train and np.random.rand() < 0.5:
            picture, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (picture, mask))
        return {
            "image": self.normalize(self.colours(picture) if self.train else picture),
            "boxmask": torch.from_numpy(np.asarray(mask, np.float32))[None],
            "area": torch.tensor((x1 - x0) * (y1 - y0), dtype=torch.float32),
        }


class Label:
    """Student and teacher; every mask is made at the size of its picture."""

    prefix, part = "mal_model", "student."

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.network: Any = build_labeler(spec["model"]["arch"])
        self.teacher = copy.deepcopy(self.network)
        whole = Objective()
        self.objective = Objective(mean_field=cast(Any, partial(unfolded_field, whole.mean_field)))
        self.workers = spec["dataset"]["num_workers_per_gpu"]
        self.batch_size, self.step = spec["train"]["batch_size"], 0

    def rows(self, split: str) -> Boxes:
        data = self.spec["dataset"]
        if split == "infer":
            return Boxes(self.spec, self.spec["inference"]["ann_path"], self.spec["inference"]["img_dir"], train=False)
        named = "train" if split == "train" else "val"
        return Boxes(self.spec, data[f"{named}_ann_path"], data[f"{named}_img_dir"], train=split == "train")

    def batches(self, rows: Any) -> dict[str, Any]:
        return {"sampler": RandomSampler(rows)}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=1e-6, betas=(0.9, 0.9), weight_decay=5e-4)

    def loss(self, batch: Batch) -> Tensor:
        with plain_functions():
            student = self.network(batch["image"], batch["area"])
            teacher = self.teacher(batch["image"], batch["area"])
        self.step += 1
        return self.objective(student, teacher, batch["image"], batch["boxmask"], epoch=0, step=self.step).total

    @torch.no_grad()
    def after_step(self) -> None:
        for kept, trained in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            kept.data = kept.data * 0.996 + trained.data * 0.004

    def outputs(self, batch: Batch) -> Tensor:
        with plain_functions():
            logits = self.network(batch["image"], batch["area"])
        larger = F.interpolate(logits, size=batch["boxmask"].shape[-2:], mode="bilinear")
        prob: Tensor = larger.sigmoid() * batch["boxmask"]
        return prob

    def masks(self, found: list[Tensor], rows: Boxes) -> Iterator[Any]:
        threshold = self.spec["train"]["mask_thres"][0]
        for row, prob in zip(rows.rows, torch.cat(found), strict=True):
            picture = rows.pictures[row["image_id"]]
            mask = np.zeros((picture["height"], picture["width"]), np.uint8)
            crop = crop_around(rows.corners(row), [0.3] * 4)
            resized = F.interpolate(prob[None], (crop.height, crop.width), mode="bilinear")[0, 0].numpy() > threshold
            inside = crop.inside(picture["width"], picture["height"])
            seen = resized[inside.y0 - crop.y0 : inside.y1 - crop.y0, inside.x0 - crop.x0 : inside.x1 - crop.x0]
            mask[inside.y0 : inside.y1, inside.x0 : inside.x1] = seen
            yield mask

    def evaluated(self, found: list[Tensor], rows: Boxes) -> dict[str, float]:
        ious = []
        for row, mask in zip(rows.rows, self.masks(found, rows), strict=True):
            picture = rows.pictures[row["image_id"]]
            runs = coco_mask.frPyObjects(row["segmentation"], picture["height"], picture["width"])
            true = coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs)
            ious.append((mask & true).sum() / ((mask | true).sum() + 1e-6))
        return {"object_IoU": float(np.mean(ious))}

    def write(self, found: list[Tensor], rows: Boxes, folder: Path) -> None:
        labels = []
        for row, mask in zip(rows.rows, self.masks(found, rows), strict=True):
            runs = coco_mask.encode(np.asfortranarray(mask))
            labels.append({**row, "segmentation": {"size": runs["size"], "counts": runs["counts"].decode("ascii")}})
        (folder / "labels.json").write_text(json.dumps({**rows.tree, "annotations": labels}))


# --- ML Recog --------------------------------------------------------------------------------------------------------


class Recognize:
    """torchvision's network in two parts, pytorch-metric-learning's sampler, miner and loss, all distances at once."""

    prefix, part = "ml_model", "model."

    def __init__(self, spec: Spec) -> None:
        self.spec, data = spec, spec["dataset"]
        side = spec["model"]["input_width"]
        found: Any = build_recognizer("resnet_50", image_size=(side, side))
        trunk = resnet50()
        trunk.fc = nn.Identity()
        self.network = nn.ModuleDict({"trunk": trunk, "embedder": found.embedder})
        self.miner, self.triplets = MultiSimilarityMiner(0.1), TripletMarginLoss(0.3, smooth_loss=True)
        self.workers, self.batch_size = data["workers"], spec["train"]["batch_size"]
        normalize = T.Compose([T.ToTensor(), T.Normalize(MEAN, [0.226] * 3)])
        self.train_transform = T.Compose(
            [
                T.RandomResizedCrop(side, interpolation=Image.Resampling.BILINEAR),
                T.RandomHorizontalFlip(0.5),
                T.ColorJitter(0.5, 0.3, 0.1, 0.1),
                T.GaussianBlur(15, (0.3, 0.7)),
                normalize,
                T.RandomErasing(0.5),
            ]
        )
        larger = int(1.14 * side)
        self.transform = T.Compose([T.Resize((larger, larger)), T.CenterCrop(side), normalize])

    def rows(self, split: str) -> Any:
        data = self.spec["dataset"]
        if split == "train":
            return ImageFolder(data["train_dataset"], self.train_transform)
        sides = [ImageFolder(data["val_dataset"][side], self.transform) for side in ("reference", "query")]
        return torch.utils.data.ConcatDataset(sides)

    def batches(self, rows: Any) -> dict[str, Any]:
        return {"sampler": MPerClassSampler(rows.targets, 4, self.batch_size, len(rows))}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=3.5e-4, weight_decay=5e-4)

    def outputs(self, batch: Any) -> Tensor:
        embedded: Tensor = self.network["embedder"](self.network["trunk"](batch[0]))
        return embedded

    def loss(self, batch: Any) -> Tensor:
        found = self.outputs(batch)
        loss: Tensor = self.triplets(found, batch[1], self.miner(found, batch[1]))
        return loss

    def after_step(self) -> None:
        pass

    def nearest(self, found: list[Tensor], rows: Any, count: int) -> tuple[Any, Tensor, Tensor]:
        """The queries' set, and of every query the classes and squared distances of its neighbours."""
        gallery, queries = rows.datasets
        unit = F.normalize(torch.cat(found))
        distances = torch.cdist(unit[len(gallery) :], unit[: len(gallery)]).square()
        near = distances.topk(count, largest=False)
        return queries, torch.tensor(gallery.targets)[near.indices], near.values

    def evaluated(self, found: list[Tensor], rows: Any) -> dict[str, float]:
        queries, classes, _ = self.nearest(found, rows, 10)
        right = classes == torch.tensor(queries.targets)[:, None]
        return {f"test_recall_at_{k}": float(right[:, :k].any(1).float().mean()) for k in (1, 5, 10)}

    def write(self, found: list[Tensor], rows: Any, folder: Path) -> None:
        queries, classes, distances = self.nearest(found, rows, self.spec["inference"]["topk"])
        with (folder / "result.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for (path, _), places, far in zip(queries.samples, classes.tolist(), distances.tolist(), strict=True):
                writer.writerow([path, str([queries.classes[place] for place in places]), str(far)])
