"""The mean loss of an epoch, the same number however the batches are divided between processes."""

from __future__ import annotations

from torch import Tensor

from fiducial.run.ranks import gather

__all__ = ["MeanLoss"]


class MeanLoss:
    """Mean of the losses of batches, weighted by their sizes. Waits for no device before :meth:`finish`."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, int]] = []

    def update(self, loss: Tensor, size: int) -> None:
        """Take a batch: its mean loss, a scalar, and how many items it has."""
        self._parts.append((loss, size))

    def finish(self) -> float | None:
        """The mean over all ranks (a collective call), None without a batch; forgets the batches.

        Rank r holds batches ``r, r + ranks, …`` of one list: they are added in the order of one process.
        """
        local = [(float(loss), size) for loss, size in self._parts]
        self._parts = []
        placed = [
            (number, rank, *part) for rank, parts in enumerate(gather(local)) for number, part in enumerate(parts)
        ]
        placed.sort()
        total = sum(size for *_, size in placed)
        return sum(loss * size for *_, loss, size in placed) / total if total else None
