"""Things that are made one after the other, a few of them ahead of whoever uses them. No torch."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import Condition, Thread, current_thread
from typing import Generic, TypeVar

__all__ = ["Prefetched"]

_Item = TypeVar("_Item")


class _Line(Generic[_Item]):
    """What stands between the thread that makes and the one that takes."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.changed = Condition()
        self.made: deque[_Item] = deque()
        self.is_closed = self.has_ended = False
        self.error: BaseException | None = None


class Prefetched(Iterator[_Item]):
    """The items that ``make`` gives, made in a thread of their own: at most ``ahead`` of them beyond those taken.

    What making one raises is raised where that one would have come. The thread ends with the last item, with an error,
    or, once the one under way is made, with :meth:`close`, which also comes when nobody holds this any longer and when
    the program ends; what ``make`` returned is then closed in that thread.
    Raises: ValueError unless ``ahead`` is above 0.
    """

    def __init__(self, make: Callable[[], Iterable[_Item]], *, ahead: int = 1) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be above 0, got {ahead}")
        self._line: _Line[_Item] = _Line(ahead)
        thread = Thread(target=_fill, args=(make, self._line), name="prefetch", daemon=True)
        self._end = weakref.finalize(self, _close, self._line, thread)
        thread.start()

    def __next__(self) -> _Item:
        line = self._line
        with line.changed:
            line.changed.wait_for(lambda: line.made or line.has_ended or line.is_closed)
            if line.made:
                item = line.made.popleft()
                line.changed.notify_all()
                return item
            error, line.error = line.error, None
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Wait until the thread has ended; nothing comes any more."""
        self._end()


def _fill(make: Callable[[], Iterable[_Item]], line: _Line[_Item]) -> None:
    error: BaseException | None = None
    items: Iterator[_Item] | None = None
    try:
        items = iter(make())
        while _has_room(line):
            try:
                item = next(items)
            except StopIteration:
                break
            with line.changed:
                line.made.append(item)
                line.changed.notify_all()
            del item  # whoever takes it may free it
    except BaseException as caught:  # raised again where the item would have been taken
        error = caught
    try:
        if close := getattr(items, "close", None):
            close()
    except BaseException as caught:
        error = error or caught
    with line.changed:
        line.error, line.has_ended = error, True
        line.changed.notify_all()


def _has_room(line: _Line[_Item]) -> bool:
    """Waits until one more may be made; False when none is wanted."""
    with line.changed:
        line.changed.wait_for(lambda: line.is_closed or len(line.made) < line.ahead)
        return not line.is_closed


def _close(line: _Line[_Item], thread: Thread) -> None:
    with line.changed:
        line.is_closed = True
        line.made.clear()
        line.changed.notify_all()
    if thread is not current_thread():  # which may be the one to find that nobody holds it
        thread.join()
