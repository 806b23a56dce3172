"""Quantizing an exported graph: which library, and what stands beside its result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiducial.deploy.quantize import modelopt_onnx
from fiducial.deploy.quantize.calibration import CalibrationBatches

__all__ = ["baseline", "quantize_graph"]


def quantize_graph(source: Path, target: Path, section: Any, batches: CalibrationBatches | None) -> str:
    """Write the quantized graph of ``source``; returns the library and its version.

    Raises: CheckpointError where the library cannot; SpecError where it does not take what the spec says.
    """
    return modelopt_onnx.quantize(source, target, section, batches)


@contextlib.contextmanager
def baseline(backend: str, source: Path) -> Iterator[Path]:
    """The model that the quantized one is compared with, as a file of the same kind."""
    yield source
