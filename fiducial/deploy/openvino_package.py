"""OpenVINO and NNCF, which report nothing of what is done with them."""

from __future__ import annotations

import sys
from typing import Any

from fiducial.errors import optional

__all__ = ["nncf", "openvino"]


def openvino() -> Any:
    """The package ``openvino``. Raises: MissingDependencyError naming the extra."""
    _keep_silent()
    return optional("openvino", extra="openvino")


def nncf() -> Any:
    """The package ``nncf``. Raises: MissingDependencyError naming the extra."""
    _keep_silent()
    return optional("nncf", extra="openvino")


def _keep_silent() -> None:
    """Have them find no ``openvino_telemetry``, which they do without.

    It comes with OpenVINO, which sends its vendor a message whenever it is imported, and writes to the home folder,
    unless a file there declines. A program that imported OpenVINO before has decided for itself.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
