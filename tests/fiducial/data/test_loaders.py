"""Loaders: every item once, in order, whatever the number of processes."""

import pytest

from fiducial.data.loaders import loader, ordered_loader


@pytest.mark.parametrize(("world", "size"), [(1, 3), (2, 3), (3, 2), (4, 100)])
def test_ranks_share_whole_batches_of_one_list(world, size):
    items = list(range(10))
    whole = [batch.tolist() for batch in ordered_loader(items, batch_size=size, workers=0)]
    shares = [
        [batch.tolist() for batch in ordered_loader(items, batch_size=size, workers=0, rank=rank, world_size=world)]
        for rank in range(world)
    ]
    assert [number for batch in whole for number in batch] == items
    assert sorted(batch for share in shares for batch in share) == whole


def test_workers_live_as_long_as_the_loader():
    assert loader([1], workers=1, batch_size=1).persistent_workers
    assert not loader([1], workers=0, batch_size=1).persistent_workers
