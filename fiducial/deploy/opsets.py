"""Which ONNX operator sets a network can be written in. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from fiducial.errors import Problem

__all__ = ["LAST_SCRIPTED", "check_opset", "opsets"]

OLDEST = 12
"""What TAO's documents name."""
LAST_SCRIPTED = 20
"""The newest that torch's older exporter writes, which is the only one that writes sets below 18."""
NEWEST = 25
"""The newest that torch's exporters and onnxruntime are known to agree on."""
_GRID_SAMPLE = 16
"""The oldest with the operator ``GridSample``."""


def opsets(deformable_attention: str = "gather") -> range:
    """The operator sets of a network whose deformable attention, if it has any, is written so.

    Torch's newer exporter knows neither ``grid_sample`` nor the node of the ``plugin``.
    """
    from onnx.defs import onnx_opset_version  # an older package may know fewer

    oldest = _GRID_SAMPLE if deformable_attention == "grid_sample" else OLDEST
    newest = NEWEST if deformable_attention == "gather" else LAST_SCRIPTED
    return range(oldest, min(newest, onnx_opset_version()) + 1)


def check_opset(requested: int, deformable_attention: str = "gather") -> Iterator[Problem]:
    """A problem when a graph cannot be written in the operator set requested."""
    known = opsets(deformable_attention)
    if requested not in known:
        what = "a network" if deformable_attention == "gather" else f"deformable attention as {deformable_attention}"
        found = f"{requested}: {what} is written in ONNX operator set {known[0]} to {known[-1]}"
        near = min(max(requested, known[0]), known[-1])
        yield Problem("export.opset_version", found, f"set {near}, or leave the key out for 17, TAO's default")
