"""Quantizing an exported graph: which library, and what its result is compared with."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiducial.deploy.digest import IR_SUFFIX
from fiducial.deploy.quantize import modelopt_onnx, nncf
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.deploy.quantize.quiet import quietly

__all__ = ["baseline", "quantize_graph"]


def quantize_graph(
    source: Path, target: Path, section: Any, batches: CalibrationBatches | None, *, as_tao: bool = False
) -> str:
    """Write the quantized graph of ``source``; returns the library and its version.

    ``as_tao``: with ModelOpt, an empty list of layers is all kinds of nodes, and not those that multiply alone.

    Raises: CheckpointError where the library cannot; SpecError where it does not take what the spec says.
    """
    with quietly():
        if section.backend == "openvino":
            return nncf.quantize(source, target, section, batches)
        assert batches is not None  # its only mode is static
        return modelopt_onnx.quantize(source, target, section, batches, all_kinds=as_tao)


@contextlib.contextmanager
def baseline(backend: str, source: Path, beside: Path) -> Iterator[Path]:
    """The model that the quantized one is compared with, as a file of the same kind, for as long as it is needed."""
    if backend != "openvino":
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=beside.parent) as folder:
        path = Path(folder) / f"{source.stem}{IR_SUFFIX}"
        nncf.convert(source, path)
        yield path
