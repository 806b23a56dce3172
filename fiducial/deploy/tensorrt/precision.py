"""The types of a graph's nodes, decided in the ONNX file: the engine is built from it as it is.

Half types by ModelOpt's AutoCast, which keeps nodes whose values are too large for them; int8 by onnxruntime's
quantizer, in the form that both libraries take; fp8 by ModelOpt's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiducial.deploy.onnx_file import AGAIN
from fiducial.deploy.quantize.quiet import onnxruntime_as_it_was, quietly
from fiducial.deploy.tensorrt.calibration_cache import Ranges, observe
from fiducial.deploy.tensorrt.layers import LayerRules
from fiducial.deploy.tensorrt.source import QUANTIZERS, Source
from fiducial.errors import CheckpointError, SpecError, one_line, optional
from fiducial.run.console import LOGGER

__all__ = ["Feeds", "typed"]

Feeds = Mapping[str, NDArray[Any]]
"""Values of a graph's inputs, by name."""
QUANTIZABLE = ("Conv", "MatMul", "Gemm")
"""Nodes whose inputs can have 8 bits; TensorRT for RTX refuses others of what onnxruntime would quantize."""
_KEPT = {"fp16": [], "bf16": ["ConvTranspose"]}
"""Kinds of nodes that stay in float32: TensorRT for RTX has no such ones in bfloat16."""
_OPSETS = {"fp16": 19, "bf16": 22}
"""The first ones in which nodes that quantize take and give the type."""


def typed(
    source: Source,
    folder: Path,
    rules: LayerRules,
    *,
    sample: Feeds,
    batches: Iterable[Feeds],
    ranges: Ranges | None = None,
) -> Path:
    """Write the graph to build from into ``folder``; returns its path, the source's own where nothing is to be done.

    Args:
        source: The exported file.
        folder: Where it is written.
        rules: The precision of each node.
        sample: One batch, which tells how large values become.
        batches: What calibration observes.
        ranges: Where what it found is kept.

    Raises: SpecError for layers that no node is; CheckpointError where the graph cannot be written in the types.
    """
    problems = list(rules.unmatched(source.nodes))
    if problems:
        raise SpecError.of(problems)
    changes = rules.half or (rules.small and not source.is_quantized)
    if source.has_plugins and changes:
        found = "has nodes of TensorRT's plugins, which the types of cannot be changed"
        raise CheckpointError(str(source.path), found, "export it with deformable_attention=gather, or build in fp32")
    path = source.path
    if rules.small and source.is_quantized:
        LOGGER.info("%s is quantized already: built with the scales in it", path)
    elif rules.small:
        write = _int8 if rules.small == "int8" else _fp8
        path = write(path, folder / f"{rules.small}.onnx", rules, batches, ranges)
    if rules.half:
        path = _half(path, folder / f"{rules.half}.onnx", rules, source.nodes, sample, quantized=_is_quantized(path))
    return path


def _is_quantized(path: Path) -> bool:
    import onnx

    return any(node.op_type in QUANTIZERS for node in onnx.load(str(path), load_external_data=False).graph.node)


def _is_large(path: Path) -> bool:
    """Whether the weights stand beside the graph."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return any(tensor.external_data for tensor in model.graph.initializer)


def _half(path: Path, target: Path, rules: LayerRules, nodes: Any, sample: Feeds, *, quantized: bool) -> Path:
    import onnx

    with quietly():
        autocast = optional("modelopt.onnx.autocast", extra="quantize")
    values = target.with_suffix(".npz")
    np.savez(values, **dict[str, Any](sample))
    kept = [name for name in nodes if rules.computes_in(name) == "fp32"]
    large = _is_large(path)
    with _explained(path, f"cannot be written in {rules.half}"), quietly():
        model = autocast.convert_to_mixed_precision(
            str(path),
            low_precision_type=rules.half,
            keep_io_types=True,
            nodes_to_exclude=[f"^(?:{'|'.join(map(re.escape, kept))})$"] if kept else [],
            op_types_to_exclude=_KEPT[rules.half],
            calibration_data=str(values),
            opset=_OPSETS[rules.half] if quantized or rules.half == "bf16" else None,
        )
        onnx.save(model, str(target), save_as_external_data=large, location=f"{target.name}.data")
    return target


def _int8(path: Path, target: Path, rules: LayerRules, batches: Iterable[Feeds], ranges: Ranges | None) -> Path:
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, large = target.with_name("prepared.onnx"), _is_large(path)
    with _explained(path, "cannot be prepared for int8"):
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True, save_as_external_data=large)
        model = onnx.load(str(prepared))
    names = [node.name for node in model.graph.node if _is_small(node, rules, "int8")]
    if not names:
        raise _nothing(path, "int8")
    found = ranges.held() if ranges else None
    if found is None:
        found = observe(prepared, batches, QUANTIZABLE, target.with_name("observed.onnx"), large=large)
        if ranges:
            ranges.keep(found)
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in found.items()}
    with _explained(path, "cannot be quantized to int8"):
        quantizer = QDQQuantizer(
            model,
            True,  # a scale for each channel of the weights
            False,
            QuantType.QInt8,
            QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            names,
            [],
            list(QUANTIZABLE),
            {
                # neither library takes zero points, or biases of 32 bits
                **{"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
                # what such layers give goes on in more bits, unless the next one takes 8
                "OpTypesToExcludeOutputQuantization": list(QUANTIZABLE),
            },
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), large)
    return target


def _fp8(path: Path, target: Path, rules: LayerRules, batches: Iterable[Feeds], ranges: Ranges | None) -> Path:
    import onnx

    with quietly():
        quantization = optional("modelopt.onnx.quantization", extra="quantize")
    if ranges:
        LOGGER.warning("calibration.cal_cache_file has no effect on fp8: ModelOpt keeps none")
    model = onnx.load(str(path), load_external_data=False)
    left = [node.name for node in model.graph.node if node.op_type in QUANTIZABLE and not _is_small(node, rules, "fp8")]
    held = list(batches)
    with _explained(path, "cannot be quantized to fp8"), onnxruntime_as_it_was():
        quantization.quantize(
            str(path),
            quantize_mode="fp8",
            calibration_data={name: np.concatenate([feeds[name] for feeds in held]) for name in held[0]},
            calibration_method="max",
            calibration_eps=["cpu"],
            op_types_to_quantize=list(QUANTIZABLE),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in left],
            high_precision_dtype="fp32",
            use_external_data_format=_is_large(path),
            output_path=str(target),
            log_level="ERROR",
        )
    if not _is_quantized(target):  # small or unsuitable layers are left out without a word
        raise _nothing(path, "fp8")
    return target


def _is_small(node: Any, rules: LayerRules, kind: str) -> bool:
    return node.op_type in QUANTIZABLE and rules.precision(node.name) == kind


def _nothing(path: Path, kind: str) -> CheckpointError:
    found = f"no layer in it can be {kind} ({', '.join(QUANTIZABLE)})"
    return CheckpointError(str(path), found, "check layers_precision, or choose another data_type")


@contextlib.contextmanager
def _explained(path: Path, found: str) -> Iterator[None]:
    """What another library raises as a user's error, and what it prints not at all."""
    try:
        with quietly():
            yield
    except (CheckpointError, SpecError, MemoryError):
        raise
    except Exception as error:  # neither ModelOpt nor onnxruntime has a class for what it cannot do
        raise CheckpointError(str(path), f"{found}: {one_line(error)}", f"{AGAIN}, or build it in fp32") from error
