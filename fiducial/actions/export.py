"""``export``: a checkpoint as ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fiducial.actions.export_rules import SUFFIX, check_targets, named_target
from fiducial.actions.models import open_model
from fiducial.actions.preflight import preflight
from fiducial.actions.result import Result
from fiducial.actions.serving import prepare, publish
from fiducial.backbones.deformable import is_deformable
from fiducial.deploy.card import ModelCard, sidecar
from fiducial.deploy.digest import model_files
from fiducial.deploy.kinds import open_predictor, runtime_of
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.deploy.openvino_export import export_openvino
from fiducial.deploy.openvino_package import openvino
from fiducial.deploy.pixels import with_preprocessing
from fiducial.deploy.quantize.artefacts import QUANTIZER, quantizer_of
from fiducial.deploy.quantize.modelopt_torch import check_exportable
from fiducial.errors import SpecError
from fiducial.prediction import Graph
from fiducial.run.console import LOGGER
from fiducial.run.run import Run, writable_folder
from fiducial.task import Task, TaskRuntime

REAL_SAMPLES = 2
"""Batches of the user's own data that the exported graph is compared on, where the dataset is there."""


def export(task: Task[Any], run: Run) -> Result:
    """Write ``export.onnx_file``, or ``<checkpoint>.onnx``, after checking that it computes what torch does."""
    preflight(task, run)
    section = run.section
    checkpoint_file = open_model(task, run)
    if runtime_of(checkpoint_file).name != "torch":
        raise SpecError("export.checkpoint", f"{checkpoint_file} is exported already", "give a checkpoint")
    target = _target(section, checkpoint_file if task.onnx_beside_checkpoint else run.folder / checkpoint_file.name)
    writable_folder(target.parent, "export.onnx_file", "name a file in a folder that can be written to")
    prepare(section.triton, "export.triton")
    runtime = task.runtime(run.spec)
    runtime.action = run.action.name
    network: Any = open_predictor(checkpoint_file, runtime, run.spec.encryption_key).network
    assert network is not None
    graph, card = runtime.graph(), runtime.card().stamped(network.state_dict())
    if section.is_quantized:
        check_exportable(network)
        said = ModelCard.beside(checkpoint_file)
        by = said.details.get(QUANTIZER) or quantizer_of(checkpoint_file)
        # the weights are those before: with the scales among them they would be another model's
        card = replace(card, weights=said.weights or card.weights, details={**card.details, QUANTIZER: by})
    formulation = runtime.formulation(run.composed.given) if is_deformable(network) else "gather"
    _check_openvino(section, formulation)
    samples: Sequence[Mapping[str, torch.Tensor]] = _samples(runtime, graph, section.batch_size)
    network = network.float().cpu()
    if section.preprocessing:
        network, graph, samples = with_preprocessing(network, graph, samples, card)
    LOGGER.info("tracing the network, then comparing the file with it: minutes for a large one")
    settings = ExportSettings(
        section.opset_version,
        section.batch_size,
        section.verbose,
        formulation,
        simplify=section.simplify,
        quantized=section.is_quantized,
    )
    _tell(target, export_onnx(network, target, graph, settings, card=card, samples=samples))
    files = [target, ModelCard.read(target).write_beside(target)]
    if section.openvino:
        written, worst = export_openvino(network, target, graph, section.batch_size, samples=samples)
        _tell(written, worst)
        files += [written, written.with_suffix(".bin"), sidecar(written)]
    files += publish(section.triton, target, batch_size=section.batch_size)
    run.note(f"Exported to {target}")
    return Result(run.action.name, run.folder, files=(*files, *runtime.write_beside_export(target)))


def _check_openvino(section: Any, formulation: str) -> None:
    """Raises: what would stop :func:`export_openvino` at its end."""
    if not section.openvino:
        return
    openvino()
    if formulation == "plugin":
        found = "deformable attention as plugin runs in TensorRT alone"
        raise SpecError("export.openvino", found, "set export.deformable_attention=gather")


def _tell(path: Path, worst: float) -> None:
    found = f"outputs differ from torch's by at most {worst:.1g} of the largest"
    compared = "not compared: only TensorRT runs its plugin" if worst != worst else found
    size = sum(part.stat().st_size for part in model_files(path))
    LOGGER.info("%s: %.1f MB, %s", path, size / 1e6, compared)


def _target(section: Any, beside: Path) -> Path:
    """The file to write, ``beside`` with suffix .onnx if none is named; a name of the spec was checked before."""
    if section.onnx_file:
        return named_target(section)
    target = beside.with_suffix(SUFFIX)
    problems = list(check_targets(section, target))
    if problems:
        raise SpecError.of(problems)
    return target


def _samples(runtime: TaskRuntime, graph: Graph, batch_size: int) -> list[Mapping[str, torch.Tensor]]:
    """Real inputs by graph input name, in batches; none when the spec's dataset is not there."""
    items = runtime.samples(REAL_SAMPLES * max(1, batch_size))
    if not items:
        LOGGER.info("no dataset of the spec is there: the graph is compared on random inputs only")
        return []
    size = batch_size if batch_size > 0 else len(items)
    groups = [items[start : start + size] for start in range(0, len(items) - size + 1, size)]
    return [
        {name: torch.stack([item[entry.batch_key] for item in group]) for name, entry in graph.inputs.items()}
        for group in groups
    ]
