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
_SCALES_BY_CHANNEL = 13
"""The oldest in which a tensor is quantized with a scale for each channel."""


def opsets(deformable_attention: str = "gather", *, quantized: bool = False) -> range:
    """The operator sets of a network whose deformable attention, if it has any, is written so.

    Torch's newer exporter knows neither ``grid_sample`` nor the node of the ``plugin``, nor ``quantized`` networks,
    whose scales for each channel need set 13.
    """
    from onnx.defs import onnx_opset_version  # an older package may know fewer

    oldest = _GRID_SAMPLE if deformable_attention == "grid_sample" else OLDEST
    oldest = max(oldest, _SCALES_BY_CHANNEL) if quantized else oldest
    newest = LAST_SCRIPTED if quantized or deformable_attention != "gather" else NEWEST
    return range(oldest, min(newest, onnx_opset_version()) + 1)


def check_opset(requested: int, deformable_attention: str = "gather", *, quantized: bool = False) -> Iterator[Problem]:
    """A problem when a graph cannot be written in the operator set requested."""
    known = opsets(deformable_attention, quantized=quantized)
    if requested not in known:
        network = "a quantized network" if quantized else "a network"
        what = network if deformable_attention == "gather" else f"deformable attention as {deformable_attention}"
        found = f"{requested}: {what} is written in ONNX operator set {known[0]} to {known[-1]}"
        near = min(max(requested, known[0]), known[-1])
        yield Problem("export.opset_version", found, f"set {near}, or leave the key out for 17, TAO's default")
