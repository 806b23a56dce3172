"""Loaders: every item once, in order, whatever the number of processes."""

import subprocess
import sys

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


LEFT_BEHIND = """
import gc, os
from fiducial.data.loaders import loader

class LeftBehind:  # of a circle, for the collector alone
    def __init__(self):
        self.itself = self
    def __del__(self, pid=os.getpid, print=print):
        print("taken down in the process itself" if pid() == own else "taken down in a worker", flush=True)

class Collecting:
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return gc.collect() * 0

own = os.getpid()
gc.disable()
LeftBehind()
print(next(iter(loader(Collecting(), workers=1, batch_size=1))), flush=True)
gc.collect()
"""


def test_workers_leave_alone_what_the_process_has_left_behind():
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["tensor([0])", "taken down in the process itself"], done.stderr
