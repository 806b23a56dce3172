"""The loaders of training: batches of classes to train on; gallery and queries, in order, to validate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from fiducial.data.loaders import loader, ordered_loader
from fiducial.training.data import TrainingData
from mlrecog.data import ClassBatches, ClassImages

__all__ = ["RecogData"]


class RecogData(TrainingData):
    """Training pictures, and the ``sides`` of validation: gallery and queries, or nothing."""

    def __init__(
        self,
        train_set: ClassImages,
        sides: Sequence[ClassImages],
        *,
        batch_size: int,
        per_class: int,
        val_batch_size: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.train_set, self.sides = train_set, tuple(sides)
        self.batch_size, self.per_class = batch_size, per_class
        self.val_batch_size, self.workers = val_batch_size, workers

    @property
    def num_batches(self) -> int:
        return len(self._batches(0, 1))

    def train_dataloader(self) -> DataLoader[Any]:
        self.train_set.seed = self.run_seed(self.train_set.seed)
        batches = self._batches(*self.ranks())
        epoch, batch = self.position()
        batches.set_epoch(epoch)
        batches.start(min(batch, len(batches)))
        return loader(self.train_set, workers=self.workers, batch_sampler=batches)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        rank, world = self.ranks()
        return [
            ordered_loader(side, batch_size=self.val_batch_size, workers=self.workers, rank=rank, world_size=world)
            for side in self.sides
        ]

    def _batches(self, rank: int, world: int) -> ClassBatches:
        return ClassBatches(
            [sample.label for sample in self.train_set.samples],
            batch_size=self.batch_size,
            per_class=self.per_class,
            seed=max(self.train_set.seed, 0),
            rank=rank,
            world=world,
        )
