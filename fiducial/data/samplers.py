"""Which rows a training epoch sees, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from fiducial.errors import DatasetError, Problem

__all__ = ["Draw", "EpochSampler", "fpratio_weights"]

_log = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A sample index and its epoch: with both, an item's own randomness is the same on any worker or rank."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


def fpratio_weights(labels: Sequence[int] | NDArray[np.integer], ratio: float) -> NDArray[np.float64]:
    """Sampling weights ``(n,)``: 1 for PASS (label 0), ``ratio * num_pass / num_fail`` for defects (any other label).

    Defects then are ``ratio / (1 + ratio)`` of the draws. Without a PASS row all weights are 1, with a warning.

    Raises: DatasetError without a defect row.
    """
    is_fail = np.asarray(labels) != 0
    num_fail = int(is_fail.sum())
    num_pass = len(is_fail) - num_fail
    if num_fail == 0:
        raise DatasetError(
            "training CSV",
            f"{num_pass} rows, all PASS",
            "add rows of defects: there is nothing to learn from PASS alone",
        )
    if num_pass == 0:
        problem = Problem("training CSV", f"{num_fail} rows, none PASS", "add rows labelled PASS", level="warning")
        _log.warning("%s; rows are drawn evenly", problem)
        return np.ones(num_fail)
    return np.where(is_fail, ratio * num_pass / num_fail, 1.0)


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
    ) -> None:
        """``batch_size`` is one rank's.

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
                "training CSV",
                f"{num_rows} rows for batches of {batch_size} on {world} device(s)",
                f"lower the batch size, or give at least {self._batch_of_all} rows",
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


def _probability(weights: ArrayLike, num_rows: int) -> NDArray[np.float64]:
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (num_rows,) or not np.isfinite(array).all() or array.min() < 0 or array.sum() <= 0:
        raise ValueError(f"need {num_rows} weights >= 0, some of them positive; got shape {array.shape}")
    probability: NDArray[np.float64] = array / array.sum()
    return probability
