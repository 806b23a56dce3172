"""The loaders of the classify task: a weighted draw of pairs to train on, pairs in order for everything else."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from changenet.classify.data import PairDataset, collate_pairs
from changenet.classify.sampling import fpratio_weights
from fiducial.data.loaders import loader, ordered_loader
from fiducial.run.console import LOGGER
from fiducial.training.data import TrainingData

__all__ = ["PairData"]


class PairData(TrainingData):
    """Training and validation pairs. ``batch_size`` is one process's; without ``val_set`` nothing is validated.

    Training rows are drawn with replacement so that defects are ``fpratio`` times as frequent as good pairs. There is
    one draw per epoch for all processes, each taking its own positions of it; a resumed epoch goes on where it stopped.
    """

    def __init__(
        self, train_set: PairDataset, val_set: PairDataset | None, *, batch_size: int, workers: int, fpratio: float
    ) -> None:
        super().__init__()
        self.train_set, self.val_set = train_set, val_set
        self.batch_size, self.workers, self.fpratio = batch_size, workers, fpratio

    @property
    def num_batches(self) -> int:
        """Training batches per epoch and process, when there is one process."""
        return len(self.train_set) // self.batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        labels = [row.label for row in self.train_set.table.rows]
        weights = fpratio_weights(labels, self.fpratio)
        LOGGER.info("Sampling Defective components at %05.2f:1 rate", weights[labels.index(1)])
        self.train_set.seed = self.run_seed(self.train_set.seed)
        sampler = self.epoch_sampler(
            len(self.train_set),
            batch_size=self.batch_size,
            seed=self.train_set.seed,
            weights=weights,
            what=str(self.train_set.table.csv_path),
        )
        return loader(
            self.train_set,
            workers=self.workers,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=collate_pairs,
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        if self.val_set is None:
            return []
        rank, world_size = self.ranks()
        return [
            ordered_loader(
                self.val_set,
                batch_size=self.batch_size,
                workers=self.workers,
                rank=rank,
                world_size=world_size,
                collate_fn=collate_pairs,
            )
        ]
