"""ModelOpt on an exported graph: Q/DQ nodes around its matrix products and convolutions, with calibrated scales."""

from __future__ import annotations

import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from fiducial.deploy.card import ENTRY, ModelCard
from fiducial.deploy.onnx import MAX_BYTES, forget_sources
from fiducial.deploy.quantize.artefacts import QUANTIZER
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.deploy.quantize.patterns import tell_unused
from fiducial.deploy.quantize.quiet import onnxruntime_as_it_was
from fiducial.errors import CheckpointError, SpecError, UserError, one_line, optional
from fiducial.run.console import LOGGER

__all__ = ["quantize"]

_TYPES: dict[str, tuple[str, ...]] = {
    **{"linear": ("Gemm", "MatMul"), "conv": ("Conv",), "matmul": ("MatMul",), "gemm": ("Gemm",)},
    **{"add": ("Add",), "mul": ("Mul",), "pool": ("AveragePool", "MaxPool")},
    **{"batchnorm": ("BatchNormalization",), "bn": ("BatchNormalization",), "clip": ("Clip",)},
    **{"global": ("GlobalAveragePool",), "transpose": ("ConvTranspose",)},
}
"""Parts of a pattern, as TAO reads them, and the nodes that each stands for. A linear layer of more than two axes is a
MatMul, which TAO's own table leaves out."""
MULTIPLIED = ("Conv", "Gemm", "MatMul")
"""What is quantized where the spec names nothing. In 8 bits additions, too, a small transformer lost 3 points."""
OVERFLOW = 0.05
"""How far fused kernels may be from the graph, in shares of an output's range: rounding is below, overflow beyond."""
_METHODS = {"entropy": "entropy"}
"""ModelOpt's names of algorithms; every other is max."""


class _Reader:
    """Calibration data, as onnxruntime and ModelOpt ask for them."""

    def __init__(self, batches: CalibrationBatches) -> None:
        self.batches = batches
        self.rewind()

    def rewind(self) -> None:
        self.left: Iterator[Mapping[str, Any]] = iter(self.batches)

    def get_first(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return _arrays(next(iter(self.batches)))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        batch = next(self.left, None)
        return None if batch is None else _arrays(batch)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray[Any, Any]]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found


def _arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.contiguous().numpy() for name, tensor in batch.items()}


def quantize(source: Path, target: Path, section: Any, batches: CalibrationBatches, *, all_kinds: bool = False) -> str:
    """Write ``source`` with Q/DQ nodes to ``target``, with its card; returns the library and its version.

    Where ``section.layers`` is empty: matrix products and convolutions, or ``all_kinds`` of nodes that ModelOpt knows.

    Raises: SpecError for patterns that match no node, and options that ModelOpt does not take; CheckpointError where it
        fails, or leaves the graph as it was.
    """
    import onnx

    library = optional("modelopt.onnx.quantization.quantize", extra="quantize")
    version = f"modelopt {optional('modelopt', extra='quantize').__version__}"
    card, model = ModelCard.read(source), onnx.load(str(source))
    large = model.ByteSize() > MAX_BYTES
    options = {
        **_options(section, model, all_kinds),
        "use_external_data_format": large,
        **(section.backend_kwargs or {}),
    }
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent) as folder:
        copy, made = Path(folder) / "source.onnx", Path(folder) / target.name
        onnx.save(model, str(copy), save_as_external_data=large, location="source.onnx.data")
        _run(library.quantize, source, copy, made, _Reader(batches), options)
        result = onnx.load(str(made))
        nodes = [node.op_type for node in result.graph.node]
        if "DequantizeLinear" not in nodes:
            found = "ModelOpt quantized none of its nodes: they are small, or none it knows"
            raise CheckpointError(str(source), found, "name others in quantize.layers, or use another backend")
        LOGGER.info("%d Q/DQ pairs in %d nodes", nodes.count("DequantizeLinear"), len(nodes))
        _finish(result, replace(card, details={**card.details, QUANTIZER: version}))
        for file in Path(folder).iterdir():
            file.unlink()
        onnx.save(result, str(made), save_as_external_data=large, location=f"{target.name}.data")
        _check_itself(made, batches)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == made):  # the graph after its weights
            os.replace(file, target.with_name(file.name))
    return version


def _check_itself(path: Path, batches: CalibrationBatches) -> None:
    """Warn where onnxruntime's fused kernels, which overflow on some CPUs, give something else than the graph says."""
    import onnxruntime as ort

    exact, fused = ort.SessionOptions(), ort.SessionOptions()
    exact.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    fused.add_session_config_entry("session.x64quantprecision", "1")
    (batch,) = batches.first(1)
    outputs = []
    for options in (exact, fused):
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime raises bare exceptions of its own; what runs the graph says why
            return
        outputs.append(session.run(None, _arrays(batch)))
    for wanted, have in zip(*outputs, strict=True):
        moved = float(np.abs(have - wanted).max() / (np.ptp(wanted) or 1))
        if not moved <= OVERFLOW:
            LOGGER.warning(
                "onnxruntime's fused kernels differ by %.0f %% from the graph on this CPU: do not run it here",
                100 * moved,
            )


def _run(
    work: Callable[..., Any], source: Path, copy: Path, target: Path, reader: _Reader, options: Mapping[str, Any]
) -> None:
    unknown = sorted(options.keys() - inspect.signature(work).parameters.keys())
    if unknown:  # which it would take, and do nothing with
        found = f"ModelOpt's quantize has no {', '.join(unknown)}"
        raise SpecError("quantize.backend_kwargs", found, "leave it out")
    arguments = {"calibration_data_reader": reader, "output_path": str(target), "log_level": "CRITICAL", **options}
    try:
        with onnxruntime_as_it_was():
            work(str(copy), **arguments)
    except UserError:
        raise  # of a calibration item
    except Exception as error:  # its own and onnxruntime's, which are of no common kind
        found = f"ModelOpt cannot quantize it: {one_line(error)}"
        raise CheckpointError(str(source), found, "export it again, or use another backend") from error


def _options(section: Any, model: Any, all_kinds: bool) -> dict[str, Any]:
    """ModelOpt's words for the keys of the section."""
    nodes = {node.name: node.op_type for node in model.graph.node if node.name}
    skipped = {pattern: [name for name in nodes if fnmatchcase(name, pattern)] for pattern in section.skip_names}
    tell_unused(pattern for pattern, names in skipped.items() if not names)
    types, named = _chosen(section, nodes) if section.layers or all_kinds else ([*MULTIPLIED], [])
    return {
        "quantize_mode": _mode(section),
        "calibration_method": _METHODS.get(section.algorithm, "max"),
        "calibration_eps": _runtimes(section.device),
        "op_types_to_quantize": types,
        "nodes_to_quantize": [re.escape(name) for name in named],
        "nodes_to_exclude": [re.escape(name) for names in skipped.values() for name in names],
        "high_precision_dtype": "fp32",  # ModelOpt's own is fp16, which is another choice than that of 8 bits
    }


def _mode(section: Any) -> str:
    sides = [side for entry in section.layers for side in (entry.weights, entry.activations) if side is not None]
    dtype = next((side.dtype for side in sides if side.dtype != "native"), "int8")
    return "fp8" if dtype.startswith("fp8") else "int8"


def _chosen(section: Any, nodes: Mapping[str, str]) -> tuple[list[str] | None, list[str]]:
    """Types of nodes, and names of nodes, that the entries of ``quantize.layers`` stand for; None: all types."""
    types: dict[str, None] = {}
    named: list[str] = []
    for number, entry in enumerate(section.layers):
        pattern = entry.module_name
        if pattern == "*":
            return None, []
        known = next((kinds for part, kinds in _TYPES.items() if part in pattern.lower()), ())
        if known and set(known) & set(nodes.values()):
            types |= dict.fromkeys(known)
            continue
        matching = [name for name in nodes if fnmatchcase(name, pattern)]
        if not matching:
            fix = f"write a kind of layer ({', '.join(_TYPES)}), or names of nodes such as {', '.join(list(nodes)[:2])}"
            raise SpecError(f"quantize.layers[{number}].module_name", f"{pattern!r} matches no node", fix)
        named += matching
        types |= dict.fromkeys(nodes[name] for name in matching)
    return list(types) or None, named


def _runtimes(device: str) -> list[str]:
    """Where the calibration runs: what is wanted and there first, else the CPU."""
    import onnxruntime as ort

    kinds = {"trt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider"}
    there = ort.get_available_providers()
    wanted = (
        ["trt", "cuda:0"] if device == "trt" else [] if device == "cpu" else [device if ":" in device else "cuda:0"]
    )
    found = [name for name in wanted if kinds[name.partition(":")[0]] in there]
    if len(found) < len(wanted):
        LOGGER.info("quantize.device: onnxruntime has no %s, calibrating on %s", device, (found or ["cpu"])[0])
    return [*found, "cpu"]


def _finish(model: Any, card: ModelCard) -> None:
    """Put the card in, and take out what tools say of the machine."""
    forget_sources(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = ENTRY, json.dumps(card.plain())
