"""torchao: weights of linear layers as 8-bit numbers, in torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.checkpoints.stand_ins import PARTS_OF
from fiducial.deploy.quantize.patterns import LayerFormat, Plan
from fiducial.deploy.quantize.stored import Stored, submodule
from fiducial.errors import CheckpointError, SpecError, optional

__all__ = ["quantize", "read", "version"]

KINDS = (nn.Linear,)
"""Layers that it quantizes: weights of convolutions become small numbers too, but cannot be computed with."""
_CLASSES = ("Int8Tensor", "Float8Tensor")
"""Classes of weights that are opened."""


def _library() -> Any:
    return optional("torchao.quantization", extra="quantize")


def version() -> str:
    """``torchao 0.18.0``."""
    return f"torchao {optional('torchao', extra='quantize').__version__}"


def quantize(network: nn.Module, plan: Plan, *, dynamic: bool, options: Mapping[str, Any]) -> None:
    """Make the weights of the planned layers small numbers, one scale per row, in place.

    ``dynamic``: inputs whose format says so are rounded too, as they come. ``options``: for torchao's ``quantize_``.

    Raises: SpecError for options that it does not take.
    """
    ao = _library()
    configs = {name: _config(ao, chosen, dynamic) for name, chosen in plan.items()}
    try:
        ao.quantize_(network, ao.FqnToConfig(configs), **{"filter_fn": None, **options})
    except (TypeError, ValueError) as error:
        if not options:
            raise
        raise SpecError("quantize.backend_kwargs", f"torchao refuses them: {error}", "leave it empty") from None
    network.requires_grad_(False)


def _config(ao: Any, chosen: LayerFormat, dynamic: bool) -> Any:
    activations = chosen.activations if dynamic else None
    if chosen.weights == "int8" and activations is None:
        return ao.Int8WeightOnlyConfig()
    if chosen.weights == "int8" and activations == "int8":
        return ao.Int8DynamicActivationInt8WeightConfig()
    if chosen.weights is not None and activations is None:
        return ao.Float8WeightOnlyConfig()
    found = f"weights {chosen.weights}, activations {chosen.activations}"
    raise SpecError("quantize.layers", found, "torchao takes int8 or fp8 weights, and int8 inputs of int8 weights")


def read(content: Mapping[str, Any], where: str) -> Stored:
    """A state dict whose quantized tensors are plain parts, as :mod:`fiducial.checkpoints` reads it.

    Raises: CheckpointError for classes of torchao that are not opened here.
    """
    quantized = {name: _tensor(parts, where) for name, parts in content.items() if isinstance(parts, Mapping)}
    floats = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    weights = {**floats, **{name: tensor.dequantize() for name, tensor in quantized.items()}}

    def put(network: nn.Module) -> None:
        for name, tensor in quantized.items():
            layer, _, parameter = name.rpartition(".")
            setattr(submodule(network, layer), parameter, nn.Parameter(tensor, requires_grad=False))

    return Stored(weights, put)


def _tensor(parts: Mapping[str, Any], where: str) -> Any:
    """A tensor of torchao, made of its parts; no code of the file is run."""
    name = str(parts.get(PARTS_OF, "")).rpartition(".")[2]
    if name not in _CLASSES:
        found = f"holds weights of torchao's {name or 'unknown class'}"
        raise CheckpointError(where, found, "quantize the model again, with the torchao that is installed here")
    ao = _library()
    try:
        qdata, scale, dtype = parts["qdata"], parts["scale"], parts["dtype"]
        block = [int(side) for side in parts["block_size"]]
        if not all(isinstance(part, Tensor) for part in (qdata, scale)) or not isinstance(dtype, torch.dtype):
            raise TypeError("parts of other types")
        if name == "Float8Tensor":
            return ao.Float8Tensor(qdata, scale, block_size=block, dtype=dtype)
        dynamic = parts.get("act_quant_kwargs") is not None
        return ao.Int8Tensor(
            *(qdata, scale, block, dtype), zero_point=parts.get("zero_point"), act_quant_kwargs=_rows(dynamic)
        )
    except (KeyError, TypeError, ValueError) as error:
        found = f"a weight of torchao's {name} that another version wrote ({error})"
        raise CheckpointError(where, found, "quantize the model again") from None


def _rows(dynamic: bool) -> Any:
    """How inputs are rounded as they come: with a scale for each row."""
    if not dynamic:
        return None
    int8 = optional("torchao.quantization.quantize_.workflows.int8.int8_tensor", extra="quantize")
    return int8.QuantizeTensorToInt8Kwargs(granularity=_library().PerRow())
