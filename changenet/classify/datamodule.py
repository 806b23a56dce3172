"""The loaders of the classify task: a weighted draw of pairs to train on, pairs in order for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from changenet.classify.data import PairDataset
from changenet.training import ChangeNetData
from fiducial.data.samplers import EpochSampler, fpratio_weights
from fiducial.data.sharding import BatchShards
from fiducial.run.console import LOGGER

__all__ = ["PairData", "ordered_loader"]


def ordered_loader(
    dataset: PairDataset, *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Batches in dataset order; ranks take whole batches of one list in turn."""
    shards = BatchShards(len(dataset), batch_size, rank=rank, world_size=world_size)
    return DataLoader(dataset, batch_sampler=shards, **_options(workers))


class PairData(ChangeNetData):
    """Training and validation pairs. ``batch_size`` is one device's; without ``val_set`` nothing is validated.

    Training rows are drawn with replacement so that defects are ``fpratio`` times as frequent as good pairs. There is
    one draw per epoch for all devices, each taking its own positions of it; a resumed epoch goes on where it stopped.
    """

    def __init__(
        self, train_set: PairDataset, val_set: PairDataset | None, *, batch_size: int, workers: int, fpratio: float
    ) -> None:
        super().__init__()
        self.train_set, self.val_set = train_set, val_set
        self.batch_size, self.workers, self.fpratio = batch_size, workers, fpratio

    @property
    def num_batches(self) -> int:
        """Training batches per epoch, when there is one device."""
        return len(self.train_set) // self.batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        labels = [row.label for row in self.train_set.table.rows]
        weights = fpratio_weights(labels, self.fpratio)
        LOGGER.info("Sampling Defective components at %05.2f:1 rate", weights[labels.index(1)])
        rank, world_size = self.ranks()
        self.train_set.seed = self.run_seed(self.train_set.seed)
        sampler = EpochSampler(
            len(self.train_set),
            batch_size=self.batch_size,
            seed=self.train_set.seed,
            weights=weights,
            rank=rank,
            world=world_size,
        )
        epoch, batch = self.position()
        sampler.set_epoch(epoch)
        # at most the whole epoch: the batch size may have been raised in the middle of one
        sampler.start(min(batch * self.batch_size, len(sampler)) * world_size)
        return DataLoader(
            self.train_set, batch_size=self.batch_size, sampler=sampler, drop_last=True, **_options(self.workers)
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.val_set is None:
            return []
        rank, world_size = self.ranks()
        return ordered_loader(
            self.val_set, batch_size=self.batch_size, workers=self.workers, rank=rank, world_size=world_size
        )


def _options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": workers > 0,
    }
