"""Ctrl-C and SIGTERM end an action in the same way. Imports nothing heavy."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt as SIGINT does; what libraries do to both handlers ends with the block."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = install(stop)
    try:
        yield
    finally:
        restore(before)


def install(handler: Callable[..., None]) -> dict[int, Any]:
    """Handle SIGINT and SIGTERM; returns the handlers before, for :func:`restore`."""
    try:
        wanted = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        return {number: signal.signal(number, handler) for number in wanted}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        return {}


def restore(handlers: dict[int, Any]) -> None:
    """Put handlers back."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
