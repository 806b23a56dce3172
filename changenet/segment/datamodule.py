"""The loaders of training: pairs in a drawn order to train on, in order to validate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader

from changenet.segment.data import SceneDataset, ordered_loader, scene_loader
from fiducial.training.data import TrainingData

__all__ = ["SceneData"]


class SceneData(TrainingData):
    """Training and validation pairs. ``batch_size`` is one process's; without ``val_set`` nothing is validated.

    There is one drawn order per epoch for all processes, each taking its own positions of it; a resumed epoch goes on
    where it stopped.
    """

    def __init__(self, train_set: SceneDataset, val_set: SceneDataset | None, *, batch_size: int, workers: int) -> None:
        super().__init__()
        self.train_set, self.val_set = train_set, val_set
        self.batch_size, self.workers = batch_size, workers

    @property
    def num_batches(self) -> int:
        """Training batches per epoch and process, when there is one process."""
        return len(self.train_set) // self.batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        self.train_set.seed = self.run_seed(self.train_set.seed)
        sampler = self.epoch_sampler(
            len(self.train_set),
            batch_size=self.batch_size,
            seed=self.train_set.seed,
            what=str(self.train_set.split.list_path),
        )
        return scene_loader(
            self.train_set, workers=self.workers, batch_size=self.batch_size, sampler=sampler, drop_last=True
        )

    def val_dataloader(self) -> list[Iterable[Any]]:
        if self.val_set is None:
            return []
        rank, world_size = self.ranks()
        return [
            ordered_loader(
                self.val_set, batch_size=self.batch_size, workers=self.workers, rank=rank, world_size=world_size
            )
        ]
