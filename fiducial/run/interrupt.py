"""Ctrl-C and SIGTERM: end an action so that it is recorded, and a training so that it can be continued exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from fiducial.run.console import LOGGER

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(Callback):
    """Lets a signal wait for the end of the batch, when weights, optimiser and position agree; a second one does not.

    Replaces Lightning's handler of SIGTERM, which communicates between processes inside a signal handler.
    """

    def __init__(self) -> None:
        self.asked = False
        self.process = os.getpid()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = _install(self._ask)

    def on_train_batch_end(self, *_: Any) -> None:
        self._stop()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _restore(self._before)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        _restore(self._before)

    def _ask(self, number: int, _: Any) -> None:
        if os.getpid() != self.process:  # a forked worker of a data loader, which its parent ends
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        LOGGER.warning("%s: stopping after this batch", signal.Signals(number).name)

    def _stop(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt as SIGINT does; what libraries do to both handlers ends with the block."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = _install(stop)
    try:
        yield
    finally:
        _restore(before)


def _install(handler: Callable[..., None]) -> dict[int, Any]:
    try:
        wanted = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        return {number: signal.signal(number, handler) for number in wanted}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        return {}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
