"""Crops around boxes, as batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fiducial.data.images import ImageCache
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import PictureCache
from fiducial.data.samplers import Draw, EpochBatches
from fiducial.errors import DatasetError
from mal.annotations import Annotations, Box
from mal.augment import BoxAugment
from mal.crop import Crop, crop_around, stretched, training_margins

__all__ = ["IMAGENET", "BoxBatch", "BoxDataset", "BoxReader", "PooledBatches"]

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Pixels = NDArray[np.uint8]


class BoxBatch(TypedDict):
    """What a loader of boxes gives; B boxes, crops of side S.

    ``image`` float32 ``(B, 3, S, S)``, normalised; ``boxmask`` float32 ``(B, 1, S, S)``, 1 in the box; ``area`` float32
    ``(B,)``, the box's in pixels of its picture; ``place`` int64 ``(B,)``, its place in the dataset. In training also
    ``clean``, the image in its own colours.
    """

    image: Tensor
    boxmask: Tensor
    area: Tensor
    place: Tensor


class BoxReader:
    """Reads pictures, kept decoded, and cuts crops out of them. ``margin``: how far a crop reaches beyond its box, as a
    share of half the box."""

    def __init__(
        self,
        annotations: Annotations,
        images: Path,
        *,
        crop_size: int,
        margin: float,
        cache_mb: int = 512,
        shared: PictureCache | None = None,
    ) -> None:
        self.annotations, self.images = annotations, images
        self.crop_size, self.margin = crop_size, margin
        self.cache = ImageCache(cache_mb * 2**20, shared)

    def picture(self, box: Box) -> Pixels:
        """The whole picture, ``(H, W, 3)``. Raises: DatasetError when it is missing, or of another size than stated."""
        stated = self.annotations.pictures[box.picture]
        path = self.images / stated.file
        pixels = self.cache.rgb(path)
        if pixels.shape[:2] != (stated.height, stated.width):
            found = f"{pixels.shape[1]} x {pixels.shape[0]} pixels, {stated.width} x {stated.height} in the annotations"
            raise DatasetError(str(path), found, "the boxes belong to another version of the picture (EXIF turns none)")
        return pixels

    def crop(self, box: Box) -> Crop:
        """The crop of evaluation."""
        return crop_around(box.corners, [self.margin] * 4)

    def cut(self, box: Box, crop: Crop, *, wrapped: bool) -> tuple[Pixels, Pixels]:
        """The crop's pixels ``(S, S, 3)`` and its box mask ``(S, S)``, 0 and 1."""
        stated = self.annotations.pictures[box.picture]
        mask = crop.box_mask(box.corners, stated.width, stated.height, wrapped=wrapped, size=self.crop_size)
        return stretched(crop.pixels(self.picture(box)), self.crop_size), mask


class BoxDataset(Dataset[dict[str, Any]]):
    """One item of :class:`BoxBatch` for each box.

    Indexed by a place, or by a :class:`~fiducial.data.samplers.Draw` that also says the epoch; what is random of an
    item follows from (seed, epoch, index) alone. With ``augment`` crops are those of training, whose margins are
    between ``margins``; ``wrapped_boxes`` repeats a box beyond the edges of its picture as the picture is repeated.
    """

    def __init__(
        self,
        reader: BoxReader,
        boxes: Sequence[Box],
        normalize: Normalization = IMAGENET,
        *,
        augment: BoxAugment | None = None,
        margins: tuple[float, float] = (0.0, 1.2),
        wrapped_boxes: bool = True,
        seed: int = 0,
    ) -> None:
        self.reader, self.boxes, self.normalize = reader, tuple(boxes), normalize
        self.augment, self.margins, self.wrapped_boxes, self.seed = augment, margins, wrapped_boxes, seed

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        epoch, index = index if isinstance(index, Draw) else (0, index)
        box = self.boxes[index]
        item: dict[str, Any] = {"area": torch.tensor(box.area, dtype=torch.float32), "place": torch.tensor(index)}
        if self.augment is None:
            pixels, mask = self.reader.cut(box, self.reader.crop(box), wrapped=False)
            return item | {"image": self.normalize(pixels), "boxmask": _plane(mask)}
        rng = np.random.default_rng((max(self.seed, 0), epoch, index))  # the same on any worker and rank
        crop = crop_around(box.corners, training_margins(rng, *self.margins))
        pixels, mask = self.augment.mirror(rng, *self.reader.cut(box, crop, wrapped=self.wrapped_boxes))
        changed, clean = self.augment.recolour(rng, pixels), self.normalize(pixels)
        return item | {
            "image": clean if changed is pixels else self.normalize(changed),
            "clean": clean,
            "boxmask": _plane(mask),
        }


def _plane(mask: Pixels) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None]


class PooledBatches(EpochBatches):
    """Batches of boxes in an order that lets a decoded picture serve several of them.

    Pictures are shuffled and taken in pools of ``pool``; the boxes of a pool are shuffled among each other. With a pool
    of all pictures every order is equally likely. No box is left out; where ranks cannot share evenly, some come twice.
    """

    def __init__(
        self, pictures: Sequence[int], *, batch_size: int, seed: int, pool: int = 64, rank: int = 0, world: int = 1
    ) -> None:
        """``pictures``: of each box, its picture. Raises: ValueError for a negative ``seed``."""
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        batches = -(-len(pictures) // batch_size)
        super().__init__(-(-batches // world), rank=rank, world=world)
        self.pictures, self.batch_size, self.seed, self.pool = np.asarray(pictures), batch_size, seed, pool

    def draw(self, epoch: int, num_batches: int) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch))
        # of each box, the number of its picture's pool; then boxes by pool, in random order within it
        known, picture = np.unique(self.pictures, return_inverse=True)
        pool = rng.permutation(len(known))[picture] // self.pool
        order = np.lexsort((rng.random(len(picture)), pool)).tolist()
        size = self.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return [batches[i % len(batches)] for i in range(num_batches)]
