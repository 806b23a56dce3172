"""Libraries that do what nobody asked for: progress bars, lines about absent GPUs, changes of other libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["onnxruntime_as_it_was", "quietly"]

_TALKATIVE = ("modelopt", "modelopt.onnx", "modelopt.onnx.autocast", "nncf", "onnxscript", "torchao")


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


@contextlib.contextmanager
def onnxruntime_as_it_was() -> Iterator[None]:
    """ModelOpt replaces parts of onnxruntime's quantizer in the whole process: they are put back."""
    from onnxruntime.quantization import base_quantizer, calibrate, qdq_quantizer

    classes = (calibrate.CalibraterBase, calibrate.MinMaxCalibrater, calibrate.HistogramCalibrater)
    others = (calibrate.HistogramCollector, qdq_quantizer.QDQQuantizer, base_quantizer.BaseQuantizer)
    before = [(part, dict(vars(part))) for part in (calibrate, *classes, *others)]
    try:
        yield
    finally:
        for part, names in before:
            for name in {**vars(part)}.keys() - names.keys():
                delattr(part, name)
            for name, value in names.items():
                if vars(part).get(name) is not value:
                    setattr(part, name, value)
