"""What the quantize action writes, and how such files are told from others without loading them. No torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES
from fiducial.deploy.card import ENTRY, sidecar
from fiducial.errors import Problem, UserError

__all__ = ["NAMES", "QUANTIZER", "QUANTIZE_GRAPH", "check_flag", "is_quantized", "quantizer_of"]

NAMES = {
    "torchao": "quantized_model_torchao.pth",
    "modelopt.pytorch": "quantized_model_modelopt.pytorch.pth",
    "modelopt.onnx": "quantized_model.onnx",
    "openvino": "quantized_model.xml",
}
"""File name of each backend's model: TAO's, where TAO has the backend."""
QUANTIZER = "quantizer"
"""The detail of a model card that names what quantized the model, with its version."""
QUANTIZE_GRAPH = "export the checkpoint that it was made from, then quantize the .onnx (modelopt.onnx or openvino)"
"""What to do where a quantized checkpoint cannot become a graph."""
_MARKS = {b"torchao.quantization": "torchao", b"modelopt_state": "modelopt"}
"""What the pickle of a quantized checkpoint names: TAO writes them without a card."""
_MOST = 64 << 20
_NODES = frozenset(("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger"))


def quantizer_of(path: Path) -> str:
    """What quantized a model file, by its content or its card; empty where nothing did, or nothing says so."""
    name = path.name.lower()
    if name.endswith(CHECKPOINT_SUFFIXES):
        return _in_checkpoint(path)
    if name.endswith(".onnx"):
        return _in_graph(path)
    return _in_card(path)


def is_quantized(path: Path) -> bool:
    """Whether a checkpoint is a quantized one."""
    return bool(_in_checkpoint(path))


def check_flag(path: Path, action: str, is_quantized: bool) -> Iterator[Problem]:
    """A quantized checkpoint without the action's ``is_quantized``, and the reverse; one that no graph is made of.

    A quantized graph runs as any other: without the flag, too.
    """
    try:
        quantizer = quantizer_of(path)
    except UserError:  # what opens the file says what is wrong with it
        return
    where, is_checkpoint = f"{action}.is_quantized", path.name.lower().endswith(CHECKPOINT_SUFFIXES)
    if action == "export" and quantizer == "torchao":
        found = f"{path} was quantized ({quantizer}): no graph is made of it"
        yield Problem("export.checkpoint", found, QUANTIZE_GRAPH)
    elif quantizer and is_checkpoint and not is_quantized:
        found = f"false, but {path} was quantized ({quantizer})"
        yield Problem(where, found, f"set {where}=true, or give the checkpoint that it was made from")
    elif not quantizer and is_quantized:
        fix = f"set {where}=false, or give what the quantize action wrote ({action}.checkpoint empty takes it)"
        yield Problem(where, f"true, but {path} is not quantized", fix)


def _in_checkpoint(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next((info for info in archive.infolist() if info.filename.endswith("data.pkl")), None)
            content = archive.open(inner).read(_MOST) if inner is not None else b""
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError):
        return ""
    return next((quantizer for mark, quantizer in _MARKS.items() if mark in content), "")


def _in_graph(path: Path) -> str:
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf's own exceptions
        return ""
    card = next((entry.value for entry in model.metadata_props if entry.key == ENTRY), "{}")
    has_nodes = any(node.op_type in _NODES for node in model.graph.node)
    return _named(card) or ("its graph has nodes of quantized numbers" if has_nodes else "")


def _in_card(path: Path) -> str:
    try:
        return _named(sidecar(path).read_text("utf-8"))
    except (OSError, ValueError):
        return ""


def _named(card: str) -> str:
    try:
        said: Any = json.loads(card)
    except (ValueError, RecursionError):
        return ""
    return str(said.get(QUANTIZER) or "") if isinstance(said, dict) else ""
