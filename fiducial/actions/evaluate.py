"""``evaluate`` and ``inference``: the same code for every runtime and every task."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fiducial import __version__
from fiducial.actions.models import find_model
from fiducial.actions.preflight import preflight
from fiducial.deploy.predictors import open_predictor
from fiducial.run.devices import resolve_devices, single
from fiducial.run.evaluation import EvaluationModule
from fiducial.run.ranks import global_rank
from fiducial.run.run import Run
from fiducial.run.trainer import evaluation_trainer, plain_interrupts
from fiducial.task import Task, load

SPLIT = {"evaluate": "test", "inference": "infer"}


def evaluate(task: Task, run: Run) -> None:
    """Metrics, per-row scores and a report on the test set."""
    kpis = _run(task, run)
    run.status.write("Test metrics generated.", kpi=kpis)


def inference(task: Task, run: Run) -> None:
    """Outputs for the rows of the inference set."""
    _run(task, run)


def _run(task: Task, run: Run) -> dict[str, float]:
    preflight(task, run)
    section = getattr(run.spec, run.action)
    model_file = open_model(task, run)
    devices = resolve_devices(section, run.action)
    runtime = load(task.runtime)(run.spec)
    predictor = open_predictor(model_file, runtime, encryption_key=run.spec.encryption_key)
    if predictor.runtime != "torch":
        devices = single(devices)
    trainer = evaluation_trainer(run, devices)
    module = EvaluationModule(predictor, runtime.evaluator())
    loader = runtime.loader(SPLIT[run.action], rank=global_rank(), world_size=devices.num_processes)
    with plain_interrupts(trainer):
        trainer.test(module, dataloaders=loader, verbose=False)
    results = module.results
    if not trainer.is_global_zero:
        return {}
    facts = {**runtime.facts(run.action), **_facts(model_file, predictor)}
    written: dict[str, float] = runtime.write(run.action, results, run.folder, facts)
    return written


def open_model(task: Task, run: Run) -> Path:
    """The model file of the action, announced."""
    found = find_model(task, run.composed, run.action)
    if found.how != "given":
        run.note(f"{run.action}.checkpoint: {found.path} ({found.how})")
    run.note(f"Loading checkpoint: {found.path}")
    return found.path


def _facts(model_file: Path, predictor: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": str(model_file),
        "runtime": predictor.runtime,
        "date": datetime.now().isoformat(timespec="seconds"),
        "fiducial": __version__,
    }
    for package in ("torch", "onnxruntime"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if getattr(predictor, "hits", 0):
        facts["goldens encoded / reused"] = f"{predictor.misses} / {predictor.hits}"
    return facts
