"""Work in threads: in order, in bounded memory."""

import threading

import pytest

from fiducial.data.threads import in_threads, threaded


class TestInThreads:
    def test_order_is_kept(self):
        assert in_threads(lambda number: number**2, range(100)) == [number**2 for number in range(100)]

    def test_it_says_how_far_it_is(self, monkeypatch, caplog):
        monkeypatch.setattr("fiducial.progress.LINE_EVERY_S", 0.0)
        caplog.set_level("INFO", "fiducial")
        in_threads(str, range(3))
        assert [message.partition(",")[0] for message in caplog.messages] == [
            f"looking at the dataset: {done}/3" for done in (1, 2, 3)
        ]

    def test_not_in_this_thread(self):
        assert threading.get_ident() not in in_threads(lambda _: threading.get_ident(), range(3))

    def test_errors_arrive(self):
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda number: 1 / number, [1, 0])


class TestThreaded:
    def test_items_are_taken_as_they_are_needed(self):
        taken = []

        def items():
            for number in range(100_000):
                taken.append(number)
                yield number

        found = threaded(lambda part: [number * 2 for number in part], items(), total=100_000)
        assert [next(found) for _ in range(3)] == [0, 2, 4]
        assert len(taken) < 5_000
        found.close()

    def test_a_few_large_things_are_shared_out_one_by_one(self):
        sizes = []
        list(threaded(lambda part: sizes.append(len(part)) or part, range(16), total=16))
        assert sizes == [1] * 16

    def test_nothing_is_begun_after_an_error(self):
        begun = []

        def look(part):
            begun.extend(part)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(threaded(look, range(100_000), total=100_000))
        assert len(begun) < 5_000
