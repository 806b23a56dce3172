"""The data module of every training: it knows where it stands among the processes and in a continued run."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader

from fiducial.data.samplers import EpochSampler
from fiducial.run.seeds import Position

__all__ = ["TrainingData"]


class TrainingData(pl.LightningDataModule):
    """Loaders of training and validation, which give each process its share and continue where a run stopped."""

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Training batches per epoch and process, when there is one process."""

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Any]:
        """Begins at :meth:`position`; its sampler has ``set_epoch``."""

    @abstractmethod
    def val_dataloader(self) -> Sequence[Iterable[Any]]:
        """Everything that a validation goes through; empty when nothing is validated."""

    def ranks(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def run_seed(self, seed: int) -> int:
        """``seed``; where it is negative, one drawn now for all processes."""
        if seed >= 0:
            return seed
        drawn = secrets.randbits(31)
        return drawn if self.trainer is None else int(self.trainer.strategy.broadcast(drawn))

    def position(self) -> tuple[int, int]:
        """The epoch and batch that training continues with."""
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        found = next((callback for callback in callbacks if isinstance(callback, Position)), None)
        return (found.epoch, found.batch) if found else (0, 0)

    def epoch_sampler(
        self, num_items: int, *, batch_size: int, seed: int, weights: ArrayLike | None = None, what: str
    ) -> EpochSampler:
        """This process's share of one draw for all processes, begun at :meth:`position`.

        ``batch_size`` is one process's; ``what`` names the data in messages.
        """
        rank, world = self.ranks()
        sampler = EpochSampler(
            num_items, batch_size=batch_size, seed=seed, weights=weights, rank=rank, world=world, what=what
        )
        epoch, batch = self.position()
        sampler.set_epoch(epoch)
        # at most the whole epoch: the batch size may have been raised in the middle of one
        sampler.start(min(batch * batch_size, len(sampler)) * world)
        return sampler
