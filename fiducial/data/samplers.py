"""Which items a training epoch sees, and in which order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from fiducial.errors import DatasetError

__all__ = ["Draw", "EpochBatches", "EpochSampler"]


class Draw(NamedTuple):
    """A sample index and its epoch: with both, an item's own randomness is the same on any worker or rank."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class EpochSampler(Sampler[Draw]):
    """The rows of one rank, in an order that depends on nothing but ``(seed, epoch)``.

    Per epoch there is one draw of ``num_rows`` positions for all ranks: with replacement by ``weights``, else a
    permutation. Rank r takes positions ``r, r + world, ...`` of it. What cannot fill a batch on every rank is dropped.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        seed: int,
        weights: ArrayLike | None = None,
        rank: int = 0,
        world: int = 1,
        what: str = "training data",
    ) -> None:
        """``batch_size`` is one rank's; ``what`` names the data in messages.

        Raises: ValueError for ``seed`` < 0, or ``weights`` that are not one number >= 0 per row with a positive sum;
        DatasetError if the rows do not fill one batch on every rank.
        """
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.probability = None if weights is None else _probability(weights, num_rows)
        self.num_rows, self.batch_size, self.seed, self.rank, self.world = num_rows, batch_size, seed, rank, world
        self.epoch = self.position = 0
        if num_rows < self._batch_of_all:
            raise DatasetError(
                what,
                f"{num_rows} items for batches of {batch_size} on {world} device(s)",
                f"lower the batch size, or give at least {self._batch_of_all} items",
            )

    def set_epoch(self, epoch: int) -> None:
        """Draw anew if ``epoch`` is not the current one."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def start(self, position: int) -> None:
        """Begin the current epoch after its first ``position`` positions, counted over all ranks.

        Raises: ValueError outside ``0 .. num_rows``, or unless every rank has consumed as many.
        """
        if not 0 <= position <= self.num_rows or position % self.world:
            raise ValueError(f"cannot start at position {position} of {self.num_rows} with {self.world} rank(s)")
        self.position = position

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch, also when it begins later: what progress is counted against."""
        return self.num_rows // self._batch_of_all * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.probability is None:
            order = rng.permutation(self.num_rows)
        else:
            order = rng.choice(self.num_rows, self.num_rows, p=self.probability)
        mine = order[self.rank :: self.world][: len(self)][self.position // self.world :]
        epoch = self.epoch
        return (Draw(epoch, index) for index in mine.tolist())

    @property
    def _batch_of_all(self) -> int:
        return self.batch_size * self.world


class EpochBatches(Sampler[list[Draw]]):
    """Whole batches of an epoch, for draws that no order of single items describes (so many of each class, say).

    A subclass draws the batches of all ranks; rank r takes batches ``r, r + world, ...`` of them. For the
    ``batch_sampler`` of a loader.
    """

    def __init__(self, num_batches: int, *, rank: int = 0, world: int = 1) -> None:
        """``num_batches`` are those of one rank in an epoch. Raises: ValueError for a rank that does not exist."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.num_batches, self.rank, self.world = num_batches, rank, world
        self.epoch = self.first = 0

    @abstractmethod
    def draw(self, epoch: int, num_batches: int) -> Sequence[Sequence[int]]:
        """The item numbers of ``num_batches`` batches, for all ranks; the same on each of them."""

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning tells the epoch to the sampler of a batch sampler only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw anew if ``epoch`` is not the current one."""
        if epoch != self.epoch:
            self.epoch, self.first = epoch, 0

    def start(self, batch: int) -> None:
        """Begin the current epoch after this rank's first ``batch`` batches. Raises: ValueError for too many."""
        if not 0 <= batch <= self.num_batches:
            raise ValueError(f"cannot start at batch {batch} of {self.num_batches}")
        self.first = batch

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, also when it begins later: what progress is counted against."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, drawn = self.epoch, self.draw(self.epoch, self.num_batches * self.world)
        mine = drawn[self.rank :: self.world][self.first : self.num_batches]
        return ([Draw(epoch, int(item)) for item in batch] for batch in mine)


def _probability(weights: ArrayLike, num_rows: int) -> NDArray[np.float64]:
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (num_rows,) or not np.isfinite(array).all() or array.min() < 0 or array.sum() <= 0:
        raise ValueError(f"need {num_rows} weights >= 0, some of them positive; got shape {array.shape}")
    probability: NDArray[np.float64] = array / array.sum()
    return probability
