"""What can be said of a ``quantize`` section before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES
from fiducial.errors import Problem

__all__ = ["IN_TORCH", "MODES", "SOURCES", "calibrates", "check_quantize", "quantizes_nothing"]

MODES = {
    "torchao": ("weight_only_ptq", "dynamic_ptq"),
    "modelopt.pytorch": ("static_ptq",),
    "modelopt.onnx": ("static_ptq",),
    "openvino": ("static_ptq", "weight_only_ptq"),
}
"""The modes of each backend."""
SOURCES = {
    "torchao": CHECKPOINT_SUFFIXES,
    "modelopt.pytorch": CHECKPOINT_SUFFIXES,
    "modelopt.onnx": (".onnx",),
    "openvino": (".onnx",),
}
"""What each backend quantizes, by the suffixes of the files."""
IN_TORCH = ("torchao", "modelopt.pytorch")
"""The backends that quantize a network's layers; the others quantize a graph."""
_ALGORITHMS = {
    "modelopt.pytorch": ("minmax", "max", "entropy"),
    "modelopt.onnx": ("minmax", "max", "entropy"),
    "openvino": ("minmax", "max"),
}
"""The algorithms of the backends that have several; they are for int8 and fp8."""
INT4_METHODS = ("awq_clip", "awq_lite", "awq_full", "rtn_dq")
"""Algorithms that TAO's schema has, and that ModelOpt takes for max where the numbers are not int4."""
_PACKAGES = {
    "torchao": (("torchao", "quantize"),),
    "modelopt.pytorch": (("modelopt", "quantize"),),
    "modelopt.onnx": (*((name, "quantize") for name in ("modelopt", "onnx_graphsurgeon", "onnxslim", "polygraphy")),),
    "openvino": (("openvino", "openvino"), ("nncf", "openvino")),
}
"""What each backend imports, and the extra that brings it."""


def calibrates(section: Any) -> bool:
    """Whether data are observed."""
    return bool(section.mode == "static_ptq")


def quantizes_nothing(spec: Any) -> bool:
    """Whether no layer is quantized, by TAO's rule."""
    # TAO-compat: an empty list of layers is no layer; here it is every one that the backend quantizes
    return bool(spec.compat == "tao" and spec.quantize.backend in IN_TORCH and not spec.quantize.layers)


def check_quantize(spec: Any) -> Iterator[Problem]:
    """What is wrong with a spec's ``quantize`` section, whatever the network."""
    section = spec.quantize
    backend = section.backend
    if section.mode not in MODES[backend]:
        found = f"{section.mode} with backend {backend}"
        yield Problem("quantize.mode", found, f"set quantize.mode={MODES[backend][0]}")
    if backend in _ALGORITHMS and section.algorithm not in _ALGORITHMS[backend]:
        found = f"{section.algorithm} with backend {backend}: max is used"
        if section.algorithm in INT4_METHODS:
            found = f"{section.algorithm} is a method for int4 weights, which no dtype here is: max is used"
        yield Problem("quantize.algorithm", found, f"set one of: {', '.join(_ALGORITHMS[backend])}", "warning")
    if section.device == "trt" and backend != "modelopt.onnx":
        yield Problem("quantize.device", f"trt with backend {backend}", "use cuda or cpu")
    yield from _check_layers(section)
    for name, extra in _PACKAGES[backend]:
        if find_spec(name) is None:
            yield Problem("quantize.backend", f"{backend}: {name} is not installed", f"pip install 'fiducial[{extra}]'")
    if quantizes_nothing(spec):
        found = "empty: with compat=tao nothing is quantized, as in TAO"
        yield Problem("quantize.layers", found, "name layers, or leave compat off", "warning")


def _check_layers(section: Any) -> Iterator[Problem]:
    backend, formats = section.backend, []
    for number, entry in enumerate(section.layers):
        where = f"quantize.layers[{number}]"
        if not entry.module_name:
            yield Problem(f"{where}.module_name", "not set", "write a pattern such as Linear or backbone.*")
        for side in ("weights", "activations"):
            quantizer = getattr(entry, side)
            if quantizer is not None and quantizer.dtype != "native":
                formats.append((f"{where}.{side}", quantizer.dtype))
    if section.layers and not formats:
        yield Problem("quantize.layers", "no entry has a dtype: nothing would be quantized", "set weights.dtype: int8")
    for where, dtype in formats:
        if backend == "openvino" and dtype != "int8":
            yield Problem(f"{where}.dtype", f"{dtype}: NNCF's is int8", "set int8")
        if dtype == "fp8_e5m2":
            yield Problem(f"{where}.dtype", "fp8_e5m2: e4m3fn is used, as in TAO", "set fp8_e4m3fn", "warning")
        if backend == "torchao" and section.mode == "weight_only_ptq" and where.endswith("activations"):
            fix = "set quantize.mode=dynamic_ptq to quantize them, too"
            yield Problem(where, f"{dtype}: weight_only_ptq leaves activations as they are", fix, "warning")
    if backend == "modelopt.onnx" and len({dtype[:3] for _, dtype in formats}) > 1:
        found = f"different dtypes: the graph is quantized with the first, {formats[0][1]}"
        yield Problem("quantize.layers", found, "use one dtype", "warning")
    if backend == "modelopt.pytorch" and section.backend_kwargs:
        yield Problem("quantize.backend_kwargs", "not used by modelopt.pytorch", "leave it empty", "warning")
