"""``quantize``: a model with 8-bit numbers, and what it lost by them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiducial.actions.models import open_model
from fiducial.actions.preflight import preflight
from fiducial.actions.result import Result
from fiducial.checkpoints.reading import read
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.pixels import PixelInputs
from fiducial.deploy.quantize.artefacts import NAMES
from fiducial.deploy.quantize.calibration import CalibrationBatches
from fiducial.deploy.quantize.comparison import Measured, call, file_size, largest_move, latency
from fiducial.deploy.quantize.graphs import baseline, quantize_graph
from fiducial.deploy.quantize.networks import plan_network, quantize_network, quantized_card, save_quantized
from fiducial.deploy.quantize.report import conclusions, write_report
from fiducial.deploy.quantize.rules import IN_TORCH, calibrates
from fiducial.deploy.writing import beside
from fiducial.errors import CheckpointError, SpecError, UserError
from fiducial.prediction import Kpis, Predictor
from fiducial.run.console import LOGGER
from fiducial.run.devices import resolve_devices, single
from fiducial.run.evaluation import EvaluationModule
from fiducial.run.run import Run
from fiducial.run.trainer import evaluation_trainer, plain_interrupts
from fiducial.task import Task, TaskRuntime

__all__ = ["quantize"]

COMPARED = 8
"""Items whose outputs are compared."""
SAME = 1e-4
"""How far a model may be from itself, saved and opened again, in shares of the range of its outputs."""
Items = list[dict[str, Tensor]]


def quantize(task: Task[Any], run: Run) -> Result:
    """Write the quantized model into the action's folder, opened before as any other and compared with what it was."""
    preflight(task, run)
    section = run.section
    _check_device(section.device)
    source = open_model(task, run)
    target = run.folder / NAMES[section.backend]
    if calibrates(section):
        _calibration(_runtime(task, run), section).check()  # before anything heavy is loaded
    with beside(target) as written:
        made = (_in_torch if section.backend in IN_TORCH else _as_graph)(task, run, source, written)
        runtime, before, items = _runtime(task, run), made.before, made.items
        predictor = open_predictor(written, runtime, run.spec.encryption_key)
        after = replace(_measured(task, run, runtime, predictor, written, items), path=target)
        _check(made, after)
    warnings, remarks = conclusions(task.metrics, before, after)
    for text in (*warnings, *remarks):
        LOGGER.log(logging.WARNING if text in warnings else logging.INFO, "%s", text)
    report = run.folder / "report.html"
    write_report(report, task.metrics, before, after, _facts(section, source), warnings, remarks)
    kpis = _kpis(before, after)
    run.status.write("Quantize metrics generated.", kpi=kpis)
    LOGGER.info("%s: %.1f MB, was %.1f MB; compared in %s", target, after.bytes / 1e6, before.bytes / 1e6, report)
    return Result(run.action.name, run.folder, kpis, (target, report))


@dataclass(frozen=True)
class _Made:
    """What came of quantizing a model."""

    before: Measured
    items: Items
    """What both models are given."""
    outputs: dict[str, Tensor] | None = None
    """Of the first item, before the quantized model was saved."""


def _in_torch(task: Task[Any], run: Run, source: Path, target: Path) -> _Made:
    """Quantize the layers of a checkpoint's network."""
    spec, section, runtime = run.spec, run.section, _runtime(task, run)
    predictor = runtime.torch_predictor(read(source, key=spec.encryption_key))
    network, graph = predictor.module.float(), runtime.graph()
    plan = plan_network(network, spec)
    items = _items(runtime, section)
    before = _measured(task, run, runtime, predictor, source, items)
    before = replace(before, bytes=sum(tensor.nbytes for tensor in network.state_dict().values()))  # no optimizer's
    network.to(_device(section.device))
    card = runtime.card().stamped(network.state_dict())
    observed = _calibration(runtime, section) if calibrates(section) else None

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for batch in observed or ():
            yield tuple(batch[name].to(predictor.device) for name in graph.inputs)

    quantizer = quantize_network(network, plan, section, batches)
    network.cpu()
    outputs = call(predictor, graph, items[0])
    save_quantized(network, target, section, quantized_card(card, graph, outputs, quantizer))
    return _Made(before, items, outputs)


def _as_graph(task: Task[Any], run: Run, source: Path, target: Path) -> _Made:
    """Quantize an exported graph."""
    section, runtime = run.section, _runtime(task, run)
    predictor = open_predictor(source, runtime)  # first: what is wrong with it is said by its own name
    with baseline(section.backend, source, target) as path:
        if path != source:
            predictor = open_predictor(path, runtime)
        items = _items(runtime, section, predictor)
        before = _measured(task, run, runtime, predictor, path, items)
    size = getattr(predictor, "batch_size", None) or 1
    pixels = getattr(predictor, "pixels", None)
    observed = _calibration(runtime, section, size, pixels) if calibrates(section) else None
    quantize_graph(source, target, section, observed, as_tao=run.spec.compat == "tao")
    return _Made(before, items)


def _runtime(task: Task[Any], run: Run) -> TaskRuntime:
    runtime = task.runtime(run.spec)
    runtime.action = run.action.name
    return runtime


def _calibration(
    runtime: TaskRuntime, section: Any, batch_size: int = 1, pixels: PixelInputs | None = None
) -> CalibrationBatches:
    """Batches prepared as the model that the runtime has adopted wants them."""
    items = section.calibration_items
    return CalibrationBatches(runtime.calibration(), runtime.graph(), items=items, batch_size=batch_size, pixels=pixels)


def _items(runtime: TaskRuntime, section: Any, predictor: Predictor | None = None) -> Items:
    """What both models are given: real items where there are some, one at a time."""
    graph = runtime.graph()
    if calibrates(section):
        return _calibration(runtime, section).first(COMPARED)
    found = runtime.samples(COMPARED)
    if found:
        return [{name: item[entry.batch_key][None] for name, entry in graph.inputs.items()} for item in found]
    LOGGER.info("no dataset of the spec is there: outputs are compared on random inputs")
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(1, *entry.shape, generator=generator) for name, entry in graph.inputs.items()}
        for _ in range(COMPARED)
    ]


def _check_device(wanted: str) -> None:
    """Raises: SpecError for a number that none of the machine's GPUs has; without any GPU the CPU does the work."""
    gpus, number = torch.cuda.device_count(), int(wanted.partition(":")[2] or 0)
    if 0 < gpus <= number:
        raise SpecError("quantize.device", f"{wanted}, and there are {gpus} GPUs, numbered from 0", "lower the number")


def _device(wanted: str) -> str:
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        LOGGER.info("quantize.device: no CUDA device, quantizing on the CPU")
        return "cpu"
    return wanted


def _measured(
    task: Task[Any], run: Run, runtime: TaskRuntime, predictor: Predictor, path: Path, items: Items
) -> Measured:
    kpis = _evaluated(task, run, runtime, predictor) if run.section.compare else None
    graph = runtime.graph()
    outputs = [call(predictor, graph, item) for item in items]
    return Measured(path, predictor.runtime, file_size(path), latency(predictor, graph, items[0]), outputs, kpis)


def _evaluated(task: Task[Any], run: Run, runtime: TaskRuntime, predictor: Predictor) -> Kpis | None:
    """The KPIs of ``evaluate``; None where no labelled test data are there."""
    try:
        evaluator, loaders = runtime.evaluator("test"), list(runtime.loaders("test"))
    except UserError as error:
        LOGGER.info("not evaluated: %s", error.problems[0])
        return None
    devices = single(resolve_devices(run.spec.evaluate, "evaluate"))
    trainer = evaluation_trainer(run, devices, task.policy(run.spec))
    module = EvaluationModule(predictor, evaluator)
    with plain_interrupts(trainer):
        trainer.test(module, dataloaders=loaders, verbose=False)
    return module.evaluator.kpis(module.results)


def _check(made: _Made, after: Measured) -> None:
    """Raises: CheckpointError when the model gives no numbers, or others than before it was saved."""
    moved = largest_move(made.before.outputs, after.outputs)
    if broken := [name for name, share in moved.items() if share == math.inf]:
        found = f"{', '.join(broken)}: the quantized model gives no numbers"
        raise CheckpointError(str(after.path), found, "calibrate with other data, or skip more layers")
    if made.outputs is not None and max(largest_move([made.outputs], after.outputs[:1]).values()) > SAME:
        raise CheckpointError(str(after.path), "computes something else than what was saved", "report this as a bug")


def _kpis(before: Measured, after: Measured) -> Kpis:
    """Numbers of the quantized model, and beside them what they were."""
    sides = (("", after), ("_before", before))
    kpis: Kpis = {f"{name}{end}": value for end, side in sides for name, value in (side.kpis or {}).items()}
    for end, side in sides:
        kpis |= {f"file_mb{end}": side.bytes / 1e6, f"milliseconds{end}": side.seconds * 1e3}
    moved = largest_move(before.outputs, after.outputs)
    return {**kpis, "largest_output_difference": max(moved.values(), default=0.0)}


def _facts(section: Any, source: Path) -> Mapping[str, object]:
    return {
        "Model": str(source),
        "Backend": section.backend,
        "Mode": section.mode,
        "Algorithm": section.algorithm if calibrates(section) else None,
        "Items observed, at most": section.calibration_items if calibrates(section) else None,
        "Layers": "; ".join(entry.module_name for entry in section.layers) or "all that the backend quantizes",
        "Left out": ", ".join(section.skip_names) or None,
    }
