"""What the layers of a network, or of a built engine, compute in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fiducial.deploy.tensorrt.flavour import Flavour
from fiducial.deploy.tensorrt.layers import LayerRules
from fiducial.deploy.tensorrt.surface import Engine, Network
from fiducial.errors import CheckpointError

__all__ = ["check_types", "types_of_engine", "types_of_network"]

_WORKERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layers that do the work; those that the numbers are counted of."""
_NAMES = {
    **{"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"},
    **{"INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"},
}
"""TensorRT's names of types, and ours."""


def types_of_network(network: Network) -> dict[str, int]:
    """How many layers that do work compute in each type, and how many tensors are quantized to each small one.

    In a strongly typed network that is what the engine computes in.
    """
    count: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        output = layer.get_output(0) if layer.num_outputs else None
        kind = layer.type.name
        if output is not None and kind in _WORKERS:
            count[_NAMES.get(output.dtype.name, output.dtype.name)] += 1
        elif output is not None and kind == "QUANTIZE":
            count[f"quantized to {_NAMES.get(output.dtype.name, output.dtype.name)}"] += 1
    return dict(sorted(count.items()))


def check_types(found: Mapping[str, int], rules: LayerRules, path: Path) -> None:
    """See that the types that were asked for are there. Raises: CheckpointError where one is not."""
    wanted = [rules.half, f"quantized to {rules.small}" if rules.small else ""]
    for kind in filter(None, wanted):
        if not found.get(kind):
            said = ", ".join(f"{count} {name}" for name, count in found.items()) or "none at all"
            lacking = f"asked for {kind.removeprefix('quantized to ')}, and no layer has it (layers: {said})"
            raise CheckpointError(str(path), lacking, "check layers_precision, or choose another data_type")


def types_of_engine(flavour: Flavour, engine: Engine) -> dict[str, int]:
    """How many outputs of an engine's layers have each type, as its inspector says; several layers may be fused."""
    text = engine.create_engine_inspector().get_engine_information(flavour.trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return {}
    return dict(sorted(Counter(_formats(layers)).items()))


def _formats(layers: Any) -> Iterator[str]:
    for layer in layers if isinstance(layers, list) else ():
        for output in layer.get("Outputs", []) if isinstance(layer, dict) else ():
            said = (
                str(output.get("Format/Datatype") or output.get("Datatype") or "") if isinstance(output, dict) else ""
            )
            if said:
                yield said
