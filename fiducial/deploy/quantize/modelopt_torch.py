"""ModelOpt in torch: layers whose weights and inputs are rounded to 8 bits, with scales from calibration.

The arithmetic is simulated: such a model tells what the numbers lose. It is fast where it is exported as a graph with
Q/DQ nodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.deploy.quantize.artefacts import QUANTIZE_GRAPH
from fiducial.deploy.quantize.patterns import Plan
from fiducial.deploy.quantize.quiet import quietly
from fiducial.deploy.quantize.stored import Stored
from fiducial.errors import CheckpointError, optional
from fiducial.ops.linear import use_plain_linears
from fiducial.run.console import LOGGER

__all__ = ["check_exportable", "quantize", "read", "state", "version"]

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
"""Layers that it quantizes."""
_BITS: dict[str, Any] = {"int8": 8, "fp8_e4m3fn": (4, 3), "fp8_e5m2": (4, 3)}
"""ModelOpt's word for a number format. TAO-compat: e5m2 is rounded as e4m3."""
_STRIDE = 16
"""Bins between two scales that are tried, of the 2048 of a histogram: with 1, each layer takes seconds."""
_OFF = {"quantizer_name": "*", "enable": False}
"""The first entry of every list: ModelOpt quantizes what no entry speaks of."""


def _library() -> Any:
    with quietly():
        return optional("modelopt.torch.quantization", extra="quantize")


def version() -> str:
    """``modelopt 0.47.0``."""
    return f"modelopt {optional('modelopt', extra='quantize').__version__}"


def quantize(
    network: nn.Module, plan: Plan, batches: Callable[[], Iterable[tuple[Tensor, ...]]], *, entropy: bool
) -> None:
    """Round the planned layers, in place, with scales from what they see of ``batches`` (the network's arguments).

    ``entropy``: scales of inputs lose the least information; else they reach the largest value.
    """
    mtq = _library()
    use_plain_linears(network)  # ModelOpt knows a class by itself, not by what it is derived from
    entries = [_OFF]
    for name, chosen in plan.items():
        if chosen.weights:
            entries.append(_entry(f"{name}.weight_quantizer", chosen.weights, chosen.weight_axis))
        if chosen.activations:
            entry = _entry(f"{name}.input_quantizer", chosen.activations, chosen.activation_axis)
            if entropy and chosen.activations == "int8":
                entry["cfg"]["calibrator"] = "histogram"
            entries.append(entry)

    used: set[str] = set()

    def observe(module: nn.Module) -> None:
        with torch.no_grad(), _calls_of(module, plan, used):
            for batch in batches():
                module(*batch)

    network.eval()
    with quietly():
        mtq.quantize(network, {"quant_cfg": entries, "algorithm": None if entropy else "max"}, observe)
        if entropy:
            _calibrate(network, observe)
    _leave_out(network, plan.keys() - used)
    network.requires_grad_(False)


@contextlib.contextmanager
def _calls_of(network: nn.Module, names: Iterable[str], used: set[str]) -> Iterator[None]:
    """Note which of the layers are called."""

    def note(name: str) -> Any:
        return lambda *_: used.add(name)

    hooks = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _leave_out(network: nn.Module, names: Iterable[str]) -> None:
    """Switch off the quantizers of layers that are never called: the network takes their weights for itself."""
    left = sorted(names)
    for name in left:
        layer: Any = network.get_submodule(name)
        layer.input_quantizer.disable()
        layer.weight_quantizer.disable()
    if left:
        LOGGER.warning(
            "ModelOpt does not reach %d layers, whose weights the network takes for itself (%s): they stay as they are",
            *(len(left), ", ".join(left[:3])),
        )


def _entry(name: str, dtype: str, axis: int | None) -> dict[str, Any]:
    return {"quantizer_name": name, "cfg": {"num_bits": _BITS[dtype], "axis": axis}, "enable": True}


def _calibrate(network: nn.Module, observe: Callable[[nn.Module], None]) -> None:
    """What ModelOpt's own algorithms leave out: histograms are collected, and the scales computed of them."""
    active = [quantizer for _, quantizer in _quantizers(network) if quantizer.is_enabled]
    for quantizer in active:
        quantizer.disable_quant()
        quantizer.enable_calib()
    observe(network)
    for quantizer in active:
        is_histogram = type(quantizer._calibrator).__name__ == "HistogramCalibrator"
        # not strict: a layer that is never called has seen nothing, and is left out afterwards
        quantizer.load_calib_amax(strict=False, **({"method": "entropy", "stride": _STRIDE} if is_histogram else {}))
        quantizer.disable_calib()
        quantizer.enable_quant()


def _quantizers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = optional("modelopt.torch.quantization.nn", extra="quantize").TensorQuantizer
    return ((name, module) for name, module in network.named_modules() if isinstance(module, kind))


def check_exportable(network: nn.Module) -> None:
    """Raises: CheckpointError where a network rounds to numbers that only TensorRT's own nodes write in a graph."""
    odd = sorted(name for name, found in _quantizers(network) if found.is_enabled and found.num_bits != _BITS["int8"])
    if odd:
        found = f"{odd[0]} rounds to fp8, which torch's exporter writes for TensorRT alone"
        raise CheckpointError("export.checkpoint", found, QUANTIZE_GRAPH)


def state(network: nn.Module) -> dict[str, Any]:
    """What ModelOpt's own ``save`` writes."""
    opt = optional("modelopt.torch.opt", extra="quantize")
    return {"modelopt_state": opt.modelopt_state(network), "model_state_dict": network.state_dict()}


def read(content: Mapping[str, Any], where: str) -> Stored:
    """What :func:`state` gave, as :mod:`fiducial.checkpoints` reads it.

    Raises: CheckpointError when ModelOpt did something else to the network than round it.
    """
    tensors = {str(name): value for name, value in content["model_state_dict"].items() if isinstance(value, Tensor)}
    scales = {name: value for name, value in tensors.items() if name.endswith("_quantizer._amax")}
    kept = dict(_enabled(content["modelopt_state"], where))
    extra = [name for name in tensors if "_quantizer." in name and name not in scales]
    if extra:
        raise CheckpointError(where, f"holds {extra[0]}, which is not opened here", "quantize the model again")
    lost = [name for name in kept if f"{name}._amax" not in scales]
    if lost:
        raise CheckpointError(where, f"no scale of {lost[0]} is in it", "quantize the model again, with calibration")

    def put(network: nn.Module) -> None:
        mtq = _library()
        use_plain_linears(network)
        entries = [_OFF, *({"quantizer_name": name, "cfg": cfg, "enable": True} for name, cfg in kept.items())]
        with quietly():
            mtq.quantize(network, {"quant_cfg": entries, "algorithm": None})
        found = dict(_quantizers(network))
        absent = [name for name in kept if name not in found]
        if absent:
            raise CheckpointError(where, f"a quantizer {absent[0]}, which the network has not", "check the spec")
        for name in kept:
            found[name].amax = scales[f"{name}._amax"]
        network.eval().requires_grad_(False)

    return Stored({name: value for name, value in tensors.items() if name not in scales}, put)


def _enabled(said: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The quantizers that are on, and how they round; nothing else of a state is taken over."""
    try:
        states: Mapping[Any, Any] = {}
        for mode, step in said["modelopt_state_dict"]:
            if mode != "quantize" and not str(mode).endswith("_calibrate"):  # such as _no_calibrate
                raise CheckpointError(where, f"ModelOpt did {mode} to it", "give a model that was quantized alone")
            states = step["metadata"].get("quantizer_state") or states  # those of the last step count
        for name, one in states.items():
            if not one["_disabled"]:
                yield str(name), _rounding(one, f"{where}: {name}")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(where, "its state of ModelOpt cannot be read", "quantize the model again") from None


def _rounding(one: Mapping[str, Any], where: str) -> dict[str, Any]:
    odd = [key for key in ("_block_sizes", "_rotate", "_bias", "_dynamic", "_unsigned", "backend") if one.get(key)]
    bits, axis = one["_num_bits"], one["_axis"]
    bits = tuple(bits) if isinstance(bits, list | tuple) else bits
    if odd or bits not in _BITS.values() or not isinstance(axis, int | None):
        found = f"rounds in a way that is not opened here ({', '.join(odd) or bits})"
        raise CheckpointError(where, found, "quantize the model again")
    return {"num_bits": bits, "axis": axis}
