"""A bound of memory, whoever uses it: images, encodings, scenes."""

import multiprocessing
import pickle
import threading

import pytest

from fiducial.data.lru import ByteLRU


def filled(max_bytes: int, *sizes: int, keep_latest: bool = False) -> ByteLRU:
    """One value per size, its key the place."""
    cache = ByteLRU(max_bytes, keep_latest=keep_latest)
    for key, size in enumerate(sizes):
        cache.put(key, f"value {key}", size)
    return cache


def kept(cache: ByteLRU, num: int = 10) -> list[int]:
    return [key for key in range(num) if cache.get(key) is not None]


def test_counts():
    cache = filled(10, 4, 4)
    assert [cache.get(0), cache.get(1), cache.get(2)] == ["value 0", "value 1", None]
    assert (cache.hits, cache.misses, cache.num_bytes, len(cache)) == (2, 1, 8, 2)


def test_least_recently_used_goes_first():
    cache = filled(10, 4, 4)
    cache.get(0)
    cache.put(2, "value 2", 4)
    assert kept(cache) == [0, 2]
    cache.put(3, "value 3", 10)
    assert kept(cache) == [3]
    assert cache.num_bytes == 10


def test_a_value_larger_than_the_bound_displaces_nothing():
    assert kept(filled(10, 4, 11, 4)) == [0, 2]


def test_the_latest_is_kept_alone_when_asked():
    cache = filled(10, 4, 11, keep_latest=True)
    assert kept(cache) == [1]
    cache.put(2, "value 2", 4)
    assert kept(cache) == [2]
    assert cache.num_bytes == 4


@pytest.mark.parametrize("keep_latest", [False, True])
def test_no_memory_keeps_nothing(keep_latest):
    assert len(filled(0, 1, 1, keep_latest=keep_latest)) == 0


def test_what_is_kept_stays():
    cache = filled(10, 4)
    cache.put(0, "another", 6)
    assert cache.get(0) == "value 0"
    assert cache.num_bytes == 4


def _counts(cache, queue):
    kept_there = cache.get(0)
    cache.put(0, "value", 3)
    queue.put((kept_there, cache.hits, cache.misses, cache.num_bytes))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_process_starts_empty(start):
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    worker = context.Process(target=_counts, args=(filled(10, 4, 4), queue))
    worker.start()
    assert queue.get(timeout=60) == (None, 0, 1, 3)
    worker.join()


def test_settings_survive_pickling():
    copy = pickle.loads(pickle.dumps(filled(10, 4, keep_latest=True)))
    assert (copy.max_bytes, copy.keep_latest, len(copy), copy.num_bytes) == (10, True, 0, 0)


def test_threads_do_not_lose_count():
    cache = ByteLRU(50)

    def work(seed):
        for step in range(2000):
            key = (seed * 7 + step) % 20
            if cache.get(key) is None:
                cache.put(key, key, 10)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.hits + cache.misses == 4 * 2000
    assert cache.num_bytes == 10 * len(cache) <= 50


def test_negative_bound():
    with pytest.raises(ValueError, match="max_bytes"):
        ByteLRU(-1)
