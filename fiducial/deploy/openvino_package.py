"""OpenVINO and NNCF, which report nothing of what is done with them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fiducial.errors import optional

__all__ = ["nncf", "openvino", "own_signal_stack"]


def openvino() -> Any:
    """The package ``openvino``. Raises: MissingDependencyError naming the extra."""
    _keep_silent()
    return optional("openvino", extra="openvino")


def nncf() -> Any:
    """The package ``nncf``. Raises: MissingDependencyError naming the extra."""
    _keep_silent()
    return optional("nncf", extra="openvino")


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Give this thread its own stack for signal handlers back at the end: around whatever compiles a graph.

    OpenVINO's CPU plugin puts another there when it is loaded, and frees it with the last graph; of two, in the order
    they came, the first one's stays in use. A signal that Python handles, such as that of an ending worker of a loader,
    then overwrites what is at that place by now (seen in 2026.4: broken objects, a crash).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    own = _SignalStack()
    if libc:
        libc.sigaltstack(None, ctypes.byref(own))
    try:
        yield
    finally:
        if libc:
            libc.sigaltstack(ctypes.byref(own), None)


def _keep_silent() -> None:
    """Have them find no ``openvino_telemetry``, which they do without.

    It comes with OpenVINO, which sends its vendor a message whenever it is imported, and writes to the home folder,
    unless a file there declines. A program that imported OpenVINO before has decided for itself.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
