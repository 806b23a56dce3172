"""Loaders of every task: their workers live as long as they do."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fiducial.data.sharding import BatchShards

__all__ = ["loader", "ordered_loader"]


def loader(dataset: Dataset[Any], *, workers: int, **order: Any) -> DataLoader[Any]:
    """Batches in an order given as DataLoader arguments."""
    return _Loader(
        dataset,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        **order,
    )


def ordered_loader(
    dataset: Dataset[Any], *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1, **options: Any
) -> DataLoader[Any]:
    """Batches in the order of the data; ranks take whole batches of one list in turn."""
    length = len(dataset)  # type: ignore[arg-type]  # torch declares none
    shards = BatchShards(length, batch_size, rank=rank, world_size=world_size)
    return loader(dataset, workers=workers, batch_sampler=shards, **options)


class _Loader(DataLoader[Any]):
    """Its workers never take down what the process had left behind when they were forked: that of a model that
    onnxruntime ran waits there, without end, for threads that only the process itself has."""

    def __iter__(self) -> Any:
        if not self.num_workers or self._iterator is not None:  # it forks nothing
            return super().__iter__()
        gc.freeze()
        try:
            return super().__iter__()
        finally:
            gc.unfreeze()
