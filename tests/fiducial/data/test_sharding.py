"""Whole batches of one list for every rank."""

import pytest

from fiducial.data.sharding import BatchShards


@pytest.mark.parametrize("num_rows", [0, 1, 4, 11, 12])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_ranks_together_have_the_batches_of_one_process(num_rows, world_size):
    alone = list(BatchShards(num_rows, 4))
    shares = [list(BatchShards(num_rows, 4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(batch for share in shares for batch in share) == alone
    assert [row for batch in alone for row in batch] == list(range(num_rows))
    assert [len(BatchShards(num_rows, 4, rank=r, world_size=world_size)) for r in range(world_size)] == [
        len(share) for share in shares
    ]


def test_by_hand():
    assert list(BatchShards(11, 4, rank=0, world_size=2)) == [[0, 1, 2, 3], [8, 9, 10]]
    assert list(BatchShards(11, 4, rank=1, world_size=2)) == [[4, 5, 6, 7]]


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(0, 0, 1), (4, 2, 2), (4, -1, 2)])
def test_nonsense(batch_size, rank, world_size):
    with pytest.raises(ValueError, match="rank"):
        BatchShards(11, batch_size, rank=rank, world_size=world_size)
