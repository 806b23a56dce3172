"""Dividing an ordered data set between devices without changing its batches."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler


class BatchShards(Sampler[list[int]]):
    """Batches of ``0 … num_rows - 1`` in order; rank r takes batches ``r, r + world_size, …`` of the one list.

    Every batch is one that a single device would form, so metrics do not depend on the number of devices. No row is
    repeated or left out; ranks may get different numbers of batches.
    """

    def __init__(self, num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
        self.starts = range(rank * batch_size, num_rows, batch_size * world_size)
        self.num_rows, self.batch_size = num_rows, batch_size

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch_size, self.num_rows))) for start in self.starts)
