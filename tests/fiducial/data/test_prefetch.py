"""Things made ahead, in a thread."""

import gc
import threading
import time

import pytest

from fiducial.data.prefetch import Prefetched


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert prefetching() == []


class TestPrefetched:
    def test_order_and_end(self):
        items = Prefetched(lambda: (number**2 for number in range(200)), ahead=3)
        assert list(items) == [number**2 for number in range(200)]
        assert next(items, "end") == "end"

    def test_in_another_thread(self):
        (name,) = Prefetched(lambda: iter([threading.current_thread().name]))
        assert name == "prefetch"

    @pytest.mark.parametrize("ahead", [1, 4])
    def test_no_more_than_ahead(self, ahead):
        begun = []

        def make():
            for number in range(100):
                begun.append(number)
                yield number

        items = Prefetched(make, ahead=ahead)
        for taken in range(5):
            wait_for(lambda taken=taken: len(begun) == taken + ahead)
            time.sleep(0.01)  # in which one more would begin, if it could
            assert len(begun) == taken + ahead
            assert next(items) == taken
        items.close()

    def test_the_next_is_made_while_the_last_is_used(self):
        made = threading.Event()

        def make():
            yield 0
            made.set()
            yield 1

        items = Prefetched(make)
        assert next(items) == 0
        assert made.wait(20)
        items.close()

    def test_an_error_comes_in_its_place(self):
        items = Prefetched(lambda: (1 / number for number in (1, 2, 0, 4)), ahead=8)
        assert [next(items), next(items)] == [1, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(items)
        assert next(items, "end") == "end"
        assert prefetching() == []

    def test_an_error_before_the_first(self):
        def make():
            raise OSError("no file")

        with pytest.raises(OSError, match="no file"):
            next(Prefetched(make))

    def test_closing_early_closes_what_is_read(self):
        closed_in = []

        def make():
            try:
                yield from range(100)
            finally:
                closed_in.append(threading.current_thread().name)

        items = Prefetched(make, ahead=2)
        next(items)
        items.close()
        items.close()
        assert closed_in == ["prefetch"]
        assert prefetching() == []
        assert next(items, "end") == "end"

    def test_nobody_holds_it(self):
        items = Prefetched(lambda: iter(range(100)))
        next(items)
        del items
        gc.collect()
        assert prefetching() == []

    def test_what_was_taken_is_not_held(self):
        class Item:
            alive = 0

            def __init__(self):
                Item.alive += 1

            def __del__(self):
                Item.alive -= 1

        items = Prefetched(lambda: (Item() for _ in range(50)), ahead=2)
        for _ in items:
            assert Item.alive <= 4  # this one, the last one until now, and two ahead

    def test_nothing_ahead_is_no_prefetching(self):
        with pytest.raises(ValueError, match="ahead"):
            Prefetched(lambda: iter([1]), ahead=0)
