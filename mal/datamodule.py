"""The loaders of training: boxes in a drawn order to train on, in order to validate."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from fiducial.data.loaders import loader, ordered_loader
from fiducial.training.data import TrainingData
from mal.data import BoxDataset, PooledBatches

__all__ = ["BoxData"]


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
        return loader(self.train_set, workers=self.workers, batch_sampler=batches)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        if self.val_set is None:
            return []
        rank, world_size = self.ranks()
        return [
            ordered_loader(
                self.val_set, batch_size=self.batch_size, workers=self.workers, rank=rank, world_size=world_size
            )
        ]
