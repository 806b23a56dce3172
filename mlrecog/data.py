"""Pictures of classes, as batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fiducial.data.images import ImageCache, read_rgb
from fiducial.data.picture_cache import PictureCache
from fiducial.data.samplers import Draw, EpochBatches
from fiducial.errors import DatasetError
from mlrecog.batch_rules import check_batches
from mlrecog.folders import Sample
from mlrecog.transforms import EvalTransform, TrainTransform

__all__ = ["ClassBatches", "ClassImages", "ImageBatch"]


class ImageBatch(TypedDict):
    """What a loader gives: ``image`` float32 ``(B, 3, H, W)``, normalised; ``label`` int64 ``(B,)``, -1 for none;
    ``place`` int64 ``(B,)``, its place in the data set."""

    image: Tensor
    label: Tensor
    place: Tensor


class ClassImages(Dataset[dict[str, Any]]):
    """One item of :class:`ImageBatch` for each picture.

    Indexed by a place, or by a :class:`~fiducial.data.samplers.Draw` that also says the epoch; what is random of an
    item follows from (seed, epoch, index) alone, with a class's second draw of one picture in a batch as another.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: EvalTransform | TrainTransform,
        *,
        shared: PictureCache | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.transform, self.seed = tuple(samples), transform, seed
        self.pictures = ImageCache(0, shared)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        epoch, number = index if isinstance(index, Draw) else (0, index)
        place = number % len(self.samples)
        sample = self.samples[place]
        if isinstance(self.transform, TrainTransform):
            rng = np.random.default_rng((max(self.seed, 0), epoch, number))
            pixels = self.transform(self._whole(sample.path), rng)
        else:
            pixels = self.transform.middle(self.pictures.rgb(sample.path, self.transform.larger))
        return {"image": pixels, "label": torch.tensor(sample.label), "place": torch.tensor(place)}

    def _whole(self, path: Path) -> Image.Image:
        if self.pictures.shared is None:
            return read_rgb(path)
        return Image.fromarray(self.pictures.rgb(path))


class ClassBatches(EpochBatches):
    """Batches of P classes with K pictures each.

    An epoch has as many pictures as the data set, rounded down to batches, and each class equally often rather than
    each picture once. The classes of the batches that all ranks take at one step differ, where there are enough. A
    class with fewer than K pictures gives some twice: a later draw of a picture is numbered a multiple of the data
    set's size higher, so that it is augmented anew.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        batch_size: int,
        per_class: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """``batch_size`` is one rank's. Raises: DatasetError when no such batch can be made, with the arithmetic."""
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if wrong := check_batches(labels, batch_size=batch_size, per_class=per_class):
            raise DatasetError(*wrong)
        super().__init__(max(1, len(labels) // (batch_size * world)), rank=rank, world=world)
        self.labels, self.seed = np.asarray(labels), seed
        self.per_class, self.num_classes = per_class, batch_size // per_class
        self._places = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    def draw(self, epoch: int, num_batches: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        steps = -(-num_batches // self.world)
        return [batch for _ in range(steps) for batch in self._step(rng)][:num_batches]

    def _step(self, rng: np.random.Generator) -> list[list[int]]:
        """The batches of all ranks at one step: of different classes where there are enough."""
        each, total = self.num_classes, len(self._places)
        if self.world * each <= total:
            order = rng.permutation(total).tolist()
            chosen = [order[rank * each : (rank + 1) * each] for rank in range(self.world)]
        else:
            chosen = [rng.permutation(total)[:each].tolist() for _ in range(self.world)]
        return [[place for number in numbers for place in self._of_class(rng, number)] for numbers in chosen]

    def _of_class(self, rng: np.random.Generator, number: int) -> list[int]:
        places = self._places[number]
        if len(places) >= self.per_class:
            return [int(place) for place in rng.permutation(places)[: self.per_class]]
        drawn = rng.choice(places, self.per_class)
        seen: dict[int, int] = {}
        numbered = []
        for place in map(int, drawn):
            numbered.append(place + seen.get(place, 0) * len(self.labels))
            seen[place] = seen.get(place, 0) + 1
        return numbered
