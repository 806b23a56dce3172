"""The files that make up a model, and what it is told by: the SHA-256 of their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fiducial.errors import CheckpointError

__all__ = ["ENGINE_SUFFIXES", "IR_SUFFIX", "file_digest", "model_files", "weights_beside"]

ENGINE_SUFFIXES = (".engine", ".trt", ".plan")
"""Of TensorRT's engines."""
IR_SUFFIX = ".xml"
"""Of OpenVINO's graphs, whose weights stand in a file of the same name beside them."""


def weights_beside(path: Path) -> Path | None:
    """The file that holds the weights of a graph of OpenVINO; None for every other kind."""
    return path.with_suffix(".bin") if path.suffix.lower() == IR_SUFFIX else None


def model_files(path: Path) -> list[Path]:
    """A model file, and those beside it that hold its weights: OpenVINO's, and what is too large for one of ONNX."""
    large = path.with_name(f"{path.name}.data") if path.suffix.lower() == ".onnx" else None
    return [path, *(part for part in (weights_beside(path), large) if part is not None and part.is_file())]


def file_digest(path: Path) -> str:
    """SHA-256 of a model file, with the weights of OpenVINO's that stand beside it.

    Raises: CheckpointError when it cannot be read.
    """
    total = hashlib.sha256()
    for part in (path, weights_beside(path)):
        if part is None:
            continue
        if not part.is_file():
            raise CheckpointError(str(part), "no such file", _lacking(part, path))
        try:
            with part.open("rb") as content:
                while piece := content.read(1 << 20):
                    total.update(piece)
        except OSError as error:
            raise CheckpointError(str(part), f"cannot be read ({error.strerror or error})", "check the file") from None
    return total.hexdigest()


def _lacking(part: Path, path: Path) -> str:
    return "name a model file that is there" if part == path else f"copy it beside {path.name}: it holds the weights"
