"""The order of an epoch."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fiducial.data.samplers import Draw, EpochBatches, EpochSampler
from fiducial.errors import DatasetError


def positions(sampler: EpochSampler) -> list[int]:
    return [draw.index for draw in sampler]


class TestEpochSampler:
    def test_permutation_of_whole_batches(self):
        sampler = EpochSampler(10, batch_size=4, seed=1)
        drawn = positions(sampler)
        assert len(drawn) == len(sampler) == 8
        assert len(set(drawn)) == 8
        assert set(drawn) < set(range(10))

    def test_yields_the_epoch(self):
        sampler = EpochSampler(4, batch_size=2, seed=1)
        sampler.set_epoch(3)
        assert [draw.epoch for draw in sampler] == [3] * 4
        assert all(isinstance(draw, Draw) for draw in sampler)

    @pytest.mark.parametrize("weights", [None, np.linspace(0.1, 1, 23)])
    def test_depends_on_seed_and_epoch_alone(self, weights):
        def order(seed: int, epoch: int) -> list[int]:
            sampler = EpochSampler(23, batch_size=2, seed=seed, weights=weights)
            sampler.set_epoch(epoch)
            return positions(sampler)

        assert order(5, 2) == order(5, 2)
        assert order(5, 2) != order(5, 3)
        assert order(5, 2) != order(6, 2)

    @pytest.mark.parametrize("world", [2, 3])
    def test_ranks_share_one_draw(self, world):
        ranks = [positions(EpochSampler(30, batch_size=4, seed=7, rank=r, world=world)) for r in range(world)]
        alone = positions(EpochSampler(30, batch_size=1, seed=7))
        kept = 30 // (4 * world) * 4 * world
        assert [len(rank) for rank in ranks] == [kept // world] * world
        assert [row for step in zip(*ranks, strict=True) for row in step] == alone[:kept]
        assert len({row for rank in ranks for row in rank}) == kept

    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_resume_skips_what_was_seen(self, rank, weighted):
        weights = np.arange(1.0, 22.0) if weighted else None

        def sampler() -> EpochSampler:
            made = EpochSampler(21, batch_size=2, seed=7, weights=weights, rank=rank, world=2)
            made.set_epoch(4)
            return made

        resumed = sampler()
        resumed.start(8)  # two batches of two ranks
        assert len(positions(resumed)) == 12 // 4 * 2
        assert len(resumed) == 20 // 2  # the whole epoch: what progress is counted against
        assert positions(resumed) == positions(sampler())[4:]

    def test_the_next_epoch_is_whole(self):
        sampler = EpochSampler(8, batch_size=2, seed=0)
        sampler.start(4)
        sampler.set_epoch(0)  # the same epoch: nothing changes
        assert len(positions(sampler)) == 4
        sampler.set_epoch(1)
        assert len(positions(sampler)) == 8

    def test_share_of_defects_in_the_draws(self):
        labels = (np.arange(20_000) % 50 == 0).astype(int)
        sampler = EpochSampler(
            20_000, batch_size=1, seed=3, weights=np.where(labels, 0.25 * (labels == 0).sum() / labels.sum(), 1.0)
        )
        share = labels[positions(sampler)].mean()
        assert share == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 20_000) ** 0.5)

    def test_weight_zero_is_never_drawn(self):
        assert set(positions(EpochSampler(3, batch_size=1, seed=0, weights=[1, 0, 1]))) <= {0, 2}

    def test_in_a_data_loader(self):
        sampler = EpochSampler(6, batch_size=2, seed=0)
        sampler.set_epoch(9)

        class Rows:
            def __len__(self) -> int:
                return 6

            def __getitem__(self, draw: Draw) -> int:
                return draw.epoch * 100 + draw.index

        batches = list(DataLoader(Rows(), batch_size=2, sampler=sampler))
        assert sorted(torch.cat(batches).tolist()) == [900, 901, 902, 903, 904, 905]

    def test_too_few_rows(self):
        with pytest.raises(DatasetError, match="7 items for batches of 4 on 2"):
            EpochSampler(7, batch_size=4, seed=0, world=2)

    @pytest.mark.parametrize(
        "options", [{"seed": -1}, {"rank": 2, "world": 2}, {"weights": [1.0]}, {"weights": [0, 0, 0]}]
    )
    def test_unusable_arguments(self, options):
        with pytest.raises(ValueError, match=r"seed|rank|weights"):
            EpochSampler(3, **{"batch_size": 1, "seed": 0, **options})

    def test_unusable_start(self):
        sampler = EpochSampler(8, batch_size=2, seed=0, world=2)
        for position in (-2, 3, 10):
            with pytest.raises(ValueError, match="cannot start"):
                sampler.start(position)


class Counted(EpochBatches):
    """Batch ``b`` of epoch ``e`` holds ``100 e + b``."""

    def draw(self, epoch, num_batches):
        return [[100 * epoch + batch] for batch in range(num_batches)]


class TestEpochBatches:
    def test_ranks_share_one_draw(self):
        ranks = [[batch[0].index for batch in Counted(3, rank=rank, world=2)] for rank in (0, 1)]
        assert ranks == [[0, 2, 4], [1, 3, 5]]

    def test_starts_later_in_one_epoch_alone(self):
        sampler = Counted(3)
        sampler.set_epoch(1)
        sampler.start(2)
        assert list(sampler) == [[Draw(1, 102)]]
        assert len(sampler) == 3
        sampler.set_epoch(2)
        assert [batch[0].index for batch in sampler] == [200, 201, 202]

    def test_lightning_finds_it(self):
        """It tells the epoch only to the ``sampler`` of a loader and of its batch sampler."""
        sampler = Counted(2)
        assert DataLoader(list(range(9)), batch_sampler=sampler).batch_sampler.sampler is sampler

    @pytest.mark.parametrize("batch", [-1, 4])
    def test_start_beyond_the_epoch(self, batch):
        with pytest.raises(ValueError, match="of 3"):
            Counted(3).start(batch)
