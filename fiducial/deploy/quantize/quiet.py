"""Libraries that print and log what nobody asked for: progress bars, numbers of quantizers, absent GPUs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quietly"]

_TALKATIVE = ("modelopt", "modelopt.onnx", "nncf", "torchao")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is printed on stdout, which belongs to whoever runs an action, and no library gives advice."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
