"""NNCF on an exported graph: a model in OpenVINO's format with 8-bit numbers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fiducial.deploy import openvino_package
from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.quantize.artefacts import QUANTIZER
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.deploy.quantize.patterns import INT8, Layer, plan_layers
from fiducial.errors import CheckpointError, SpecError, one_line
from fiducial.run.console import LOGGER

__all__ = ["convert", "quantize"]

_KINDS = {
    **{"MatMul": "Linear", "Convolution": "Conv2d", "GroupConvolution": "Conv2d"},
    **{"ConvolutionBackpropData": "ConvTranspose2d", "GroupConvolutionBackpropData": "ConvTranspose2d"},
}
"""Operations that are quantized, and the layers that patterns know them as."""


def quantize(source: Path, target: Path, section: Any, batches: CalibrationBatches | None) -> str:
    """Write the quantized graph of an ONNX file to ``target``, with its weights and its card beside it.

    Without ``batches`` the weights alone are small numbers. Returns the library and its version.

    Raises: SpecError for patterns that match nothing, and options that NNCF does not take; CheckpointError.
    """
    nncf = openvino_package.nncf()
    model = _read(source)
    options = {"ignored_scope": _ignored(nncf, model, section), **(section.backend_kwargs or {})}
    try:
        if batches is None:
            model = nncf.compress_weights(model, **{"mode": nncf.CompressWeightsMode.INT8_SYM, **options})
        else:
            if any(operation.get_type_name() == "Softmax" for operation in model.get_ops()):
                options.setdefault("model_type", nncf.ModelType.TRANSFORMER)  # leaves what attention is sensitive in
            options.setdefault("subset_size", len(batches))
            with openvino_package.own_signal_stack():
                model = nncf.quantize(model, nncf.Dataset(_Arrays(batches)), **options)
    except TypeError as error:
        raise SpecError("quantize.backend_kwargs", f"NNCF refuses them: {one_line(error)}", "leave them out") from None
    except (RuntimeError, ValueError, nncf.ValidationError) as error:
        found = f"NNCF cannot quantize it: {one_line(error)}"
        raise CheckpointError(str(source), found, "export it again, or use another backend") from error
    version = f"nncf {nncf.__version__}"
    card = ModelCard.read(source)
    _save(model, target, replace(card, details={**card.details, QUANTIZER: version}))
    return version


def convert(source: Path, target: Path) -> None:
    """Write an ONNX file in OpenVINO's format, as it is. Raises: CheckpointError."""
    _save(_read(source), target, ModelCard.read(source))


class _Arrays:
    """Batches as OpenVINO takes them."""

    def __init__(self, batches: CalibrationBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return ({name: tensor.contiguous().numpy() for name, tensor in batch.items()} for batch in self.batches)


def _read(source: Path) -> Any:
    openvino = openvino_package.openvino()
    try:
        return openvino.Core().read_model(source)
    except RuntimeError as error:
        found = f"OpenVINO cannot read it: {one_line(error)}"
        raise CheckpointError(str(source), found, "export it with export.deformable_attention=gather") from None


def _ignored(nncf: Any, model: Any, section: Any) -> Any:
    """The operations that stay as they are."""
    found = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops() if op.get_type_name() in _KINDS}
    layers = [Layer(name, _KINDS[kind]) for name, kind in found.items()]
    plan, problems = plan_layers(layers, section.layers, section.skip_names, default=INT8)
    if problems:
        raise SpecError.of(problems)
    if not plan:
        told = f"{len(layers)} layers could be quantized, and none is"
        raise SpecError("quantize.layers", told, "skip fewer of them")
    LOGGER.info("quantizing %d of %d layers with openvino", len(plan), len(layers))
    return nncf.IgnoredScope(names=[layer.name for layer in layers if layer.name not in plan], validate=False)


def _save(model: Any, target: Path, card: ModelCard) -> None:
    openvino = openvino_package.openvino()
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent) as folder:
        made = Path(folder) / target.name
        openvino.save_model(model, made, compress_to_fp16=False)
        card.write_beside(made)
        for file in (made.with_suffix(".bin"), sidecar(made), made):  # the graph last
            os.replace(file, target.with_name(file.name))
