"""The loaders of training: boxes in a drawn order to train on, in order to validate."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from fiducial.data.sharding import BatchShards
from fiducial.training.data import TrainingData
from mal.data import BoxDataset, PooledBatches

__all__ = ["BoxData", "ordered_loader"]


def ordered_loader(
    dataset: BoxDataset, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Batches in the order of the annotations; ranks take whole batches of one list in turn."""
    shards = BatchShards(len(dataset), batch_size, rank=rank, world_size=world_size)
    return DataLoader(dataset, batch_sampler=shards, **_options(workers))


class BoxData(TrainingData):
    """Training and validation boxes. ``batch_size`` is one process's; without ``val_set`` nothing is validated."""

    def __init__(
        self, train_set: BoxDataset, val_set: BoxDataset | None, *, batch_size: int, workers: int, pool: int
    ) -> None:
        super().__init__()
        self.train_set, self.val_set = train_set, val_set
        self.batch_size, self.workers, self.pool = batch_size, workers, pool

    @property
    def num_batches(self) -> int:
        """Training batches per epoch, when there is one process."""
        return -(-len(self.train_set) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        self.train_set.seed = self.run_seed(self.train_set.seed)
        rank, world = self.ranks()
        batches = PooledBatches(
            [box.picture for box in self.train_set.boxes],
            batch_size=self.batch_size,
            seed=self.train_set.seed,
            pool=self.pool,
            rank=rank,
            world=world,
        )
        epoch, batch = self.position()
        batches.set_epoch(epoch)
        batches.start(min(batch, len(batches)))
        return DataLoader(self.train_set, batch_sampler=batches, **_options(self.workers))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        if self.val_set is None:
            return []
        rank, world_size = self.ranks()
        return [
            ordered_loader(
                self.val_set, batch_size=self.batch_size, workers=self.workers, rank=rank, world_size=world_size
            )
        ]


def _options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": workers > 0,
    }
