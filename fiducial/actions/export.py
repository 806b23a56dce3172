"""``export``: a checkpoint as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fiducial.actions.models import find_model
from fiducial.actions.preflight import preflight
from fiducial.backbones.deformable import is_deformable
from fiducial.checkpoints.reading import read
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.errors import SpecError, UserError
from fiducial.ops import Formulation
from fiducial.run.console import LOGGER
from fiducial.run.run import Run, writable_folder
from fiducial.task import Task, load

REAL_SAMPLES = 2
"""Batches of the user's own data that the exported graph is compared on, where the dataset is there."""


def export(task: Task, run: Run) -> None:
    """Write ``export.onnx_file``, or ``<checkpoint>.onnx``, after checking that it computes what torch does."""
    preflight(task, run)
    section = run.spec.export
    checkpoint_file = find_model(task, run.composed, run.action).path
    if checkpoint_file.suffix.lower() == ".onnx":
        raise SpecError("export.checkpoint", f"{checkpoint_file} is ONNX already", "give a checkpoint")
    target = _target(section, checkpoint_file)
    run.note(f"Loading checkpoint: {checkpoint_file}")
    runtime = load(task.runtime)(run.spec)
    predictor = runtime.torch_predictor(read(checkpoint_file, key=run.spec.encryption_key))
    graph = runtime.graph()
    worst = export_onnx(
        predictor.network.float().cpu(),
        target,
        graph,
        ExportSettings(
            section.opset_version,
            section.batch_size,
            section.verbose,
            formulation(run, predictor.network),
        ),
        metadata=runtime.metadata(),
        samples=_samples(runtime, graph, section.batch_size),
    )
    compared = "not compared: only TensorRT runs its plugin" if worst != worst else f"at most {worst:.2g} from torch"
    LOGGER.info("%s: %.1f MB, %s", target, target.stat().st_size / 1e6, compared)
    if getattr(section, "serialize_nvdsinfer", False) and task.export_extras:
        load(task.export_extras)(runtime, target)
    run.note(f"Exported to {target}")


def formulation(run: Run, network: nn.Module) -> Formulation:
    """How deformable attention is written: ``export.deformable_attention``, where the network has any."""
    wanted: Formulation = getattr(run.spec.export, "deformable_attention", "gather")
    # TAO-compat: the plugin's node, which only TensorRT runs, is what TAO writes
    if getattr(run.spec, "compat", "off") == "tao" and "export.deformable_attention" not in run.composed.given:
        wanted = "plugin"
    return wanted if is_deformable(network) else "gather"


def _target(section: Any, checkpoint_file: Path) -> Path:
    target = Path(section.onnx_file).expanduser() if section.onnx_file else checkpoint_file.with_suffix(".onnx")
    if target.suffix == ".etlt":
        found = "an encrypted .etlt file: its format is NVIDIA's own"
        raise SpecError("export.onnx_file", found, "write .onnx")
    if target.exists() and not section.overwrite:
        raise SpecError("export.onnx_file", f"{target} exists already", "set export.overwrite=true, or another name")
    writable_folder(target.parent, "export.onnx_file", "name a file in a folder that can be written to")
    return target


def _samples(runtime: Any, graph: Any, batch_size: int) -> list[dict[str, torch.Tensor]]:
    """A few real inputs by graph input name; none when the spec's dataset is not there."""
    for split in ("test", "infer", "val", "train"):
        try:
            dataset = runtime.dataset(split)
        except UserError:
            continue
        wanted = REAL_SAMPLES * max(1, batch_size)
        items = [dataset[i] for i in range(min(wanted, len(dataset)))]
        if batch_size > 0:
            groups = [items[i : i + batch_size] for i in range(0, len(items) - batch_size + 1, batch_size)]
        else:
            groups = [items]
        return [
            {name: torch.stack([item[entry.batch_key] for item in group]) for name, entry in graph.inputs.items()}
            for group in groups
        ]
    LOGGER.info("no dataset of the spec is there: the graph is compared on random inputs only")
    return []
