"""Whether a graph whose types were changed, or an engine, still computes what the exported file does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiducial.errors import CheckpointError, one_line
from fiducial.run.console import LOGGER

__all__ = ["SAME_8_BITS", "TOLERANCES", "TRUSTED", "Arrays", "difference", "run_onnx"]

Arrays = Mapping[str, NDArray[Any]]

TOLERANCES = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 3e-2, "bf16": 1e-1, "int8": 1.0, "fp8": 1.0}
"""How far an output may be from the exported file's, as part of its largest value.

8 bits lose what a test set must measure: beyond this it is no loss but another function.
"""
SAME_8_BITS = 0.1
"""How far an engine may be from the graph in 8 bits that it was built from: values on the border between two numbers
fall to either side."""
TRUSTED = 0.25
"""Beyond this a warning is due."""


def run_onnx(path: Path, feeds: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Outputs of a graph on the CPU, as it is written; None where onnxruntime does not run it there (bfloat16)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # int8 of its own is another one
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime raises bare exceptions of its own
        LOGGER.info("not compared on the CPU: %s", one_line(error))
        return None


def difference(path: Path, have: Arrays, wanted: Arrays, tolerance: float, what: str) -> float:
    """The largest difference of any output, as part of the largest value of that output.

    Raises: CheckpointError when it is above the tolerance, or something is no number.
    """
    worst = 0.0
    for name, expected in wanted.items():
        found = have[name]
        if found.shape != expected.shape:
            raise CheckpointError(str(path), f"{what}: {name} is {found.shape} instead of {expected.shape}", _FIX)
        scale = float(np.abs(expected).max(initial=0.0)) or 1.0
        error = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / scale
        if not error <= tolerance:  # NaN is no agreement either
            said = f"{what}: {name} is off by {error:.2g} of its largest value"
            raise CheckpointError(str(path), said, _FIX)
        worst = max(worst, error)
    if worst > TRUSTED:
        LOGGER.warning("%s: %s: off by up to %.2g of its largest value", path, what, worst)
    return worst


_FIX = "keep layers in float32 with layers_precision, choose another data_type, or evaluate the .onnx file instead"
