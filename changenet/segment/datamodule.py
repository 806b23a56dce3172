"""The loaders of training: pairs in a drawn order to train on, in order to validate."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from changenet.segment.data import SceneDataset, scene_loader
from changenet.training import ChangeNetData
from fiducial.data.samplers import EpochSampler
from fiducial.data.sharding import BatchShards

__all__ = ["SceneData"]


class SceneData(ChangeNetData):
    """Training and validation pairs. ``batch_size`` is one device's; without ``val_set`` nothing is validated.

    There is one drawn order per epoch for all devices, each taking its own positions of it; a resumed epoch goes on
    where it stopped.
    """

    def __init__(self, train_set: SceneDataset, val_set: SceneDataset | None, *, batch_size: int, workers: int) -> None:
        super().__init__()
        self.train_set, self.val_set = train_set, val_set
        self.batch_size, self.workers = batch_size, workers

    @property
    def num_batches(self) -> int:
        """Training batches per epoch, when there is one device."""
        return len(self.train_set) // self.batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world_size = self.ranks()
        self.train_set.seed = self.run_seed(self.train_set.seed)
        sampler = EpochSampler(
            len(self.train_set),
            batch_size=self.batch_size,
            seed=self.train_set.seed,
            rank=rank,
            world=world_size,
        )
        epoch, batch = self.position()
        sampler.set_epoch(epoch)
        sampler.start(batch * self.batch_size * world_size)
        return scene_loader(
            self.train_set, workers=self.workers, batch_size=self.batch_size, sampler=sampler, drop_last=True
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.val_set is None:
            return []
        rank, world_size = self.ranks()
        shards = BatchShards(len(self.val_set), self.batch_size, rank=rank, world_size=world_size)
        return scene_loader(self.val_set, workers=self.workers, batch_sampler=shards)
