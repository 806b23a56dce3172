"""Work on many small things in threads, in bounded memory. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fiducial.progress import followed

__all__ = ["in_threads", "threaded"]

_THREADS = 8
"""More than there are processors: a disk far away answers several at once."""
_MOST = 64
"""Things that one thread is given at a time. Handing over a single one costs as much as looking at a small file."""
_ROUNDS = 8
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def in_threads(look: Callable[[_Item], _Found], items: Iterable[_Item]) -> list[_Found]:
    """What ``look`` returns for each item, in their order; it says how far it is where that takes long."""
    listed = list(items)
    found = threaded(lambda part: [look(item) for item in part], listed, total=len(listed))
    return list(followed(found, "looking at the dataset:", total=len(listed)))


def threaded(
    look: Callable[[list[_Item]], list[_Found]], items: Iterable[_Item], *, total: int
) -> Generator[_Found, None, None]:
    """What ``look`` returns for the items, some of which it is given at a time, in their order.

    ``items`` are taken from as they are needed, so that neither they nor what is found need be in memory at once.
    ``total``: about how many there are.
    """
    size = max(1, min(_MOST, total // (_ROUNDS * _THREADS)))
    left = iter(items)
    under_way: deque[Future[list[_Found]]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        while part := list(islice(left, size)):
            under_way.append(pool.submit(look, part))
            if len(under_way) > 2 * _THREADS:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
