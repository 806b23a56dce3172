"""An exported graph in OpenVINO's own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.deploy.card import ModelCard
from fiducial.deploy.digest import IR_SUFFIX
from fiducial.deploy.onnx_file import one_line
from fiducial.deploy.openvino_package import openvino, own_signal_stack
from fiducial.deploy.openvino_predictor import settings
from fiducial.deploy.verification import Arrays, batches_for, compare, finite_outputs
from fiducial.deploy.writing import beside
from fiducial.errors import CheckpointError
from fiducial.prediction import Graph

__all__ = ["export_openvino"]


def export_openvino(
    network: nn.Module, onnx_path: Path, graph: Graph, batch_size: int, *, samples: Sequence[Mapping[str, Tensor]]
) -> tuple[Path, float]:
    """Write ``<name>.xml`` and ``<name>.bin`` of an ONNX file beside it, and its card.

    ``network``: what was exported; OpenVINO must give what it does, on ``samples`` and random inputs, before the files
    appear. Returns the first of them, and how far outputs may be from torch's (:func:`difference`).

    Raises: MissingDependencyError; CheckpointError when OpenVINO cannot take the graph, computes something else, or the
        files cannot be written.
    """
    ov, target = openvino(), onnx_path.with_suffix(IR_SUFFIX)
    batches = batches_for(graph, batch_size, samples)
    with torch.no_grad():
        expected = [finite_outputs(network, graph, batch) for batch in batches]
    with beside(target) as written:
        core = ov.Core()
        try:
            ov.save_model(core.read_model(onnx_path), written, compress_to_fp16=False)
            with own_signal_stack():
                compiled = core.compile_model(written, "CPU", settings())
        except RuntimeError as error:
            found = f"OpenVINO cannot take the graph: {one_line(error)}"
            raise CheckpointError(
                str(onnx_path), found, "set export.openvino=false, and report this as a bug"
            ) from None
        worst = compare(written, lambda feeds: _run(compiled, graph, feeds), batches, expected)
        ModelCard.read(onnx_path).write_beside(written)
    return target, worst


def _run(compiled: Any, graph: Graph, feeds: Arrays) -> Arrays:
    given = compiled(dict(feeds))
    return {name: given[name] for name in graph.outputs}
