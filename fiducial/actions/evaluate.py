"""``evaluate`` and ``inference``: the same code for every runtime and every task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fiducial import __version__
from fiducial.actions.models import open_model
from fiducial.actions.preflight import preflight
from fiducial.actions.result import Result
from fiducial.deploy.kinds import open_predictor, runtime_of
from fiducial.metric_table import Stage
from fiducial.prediction import Predictor
from fiducial.run.console import LOGGER
from fiducial.run.devices import resolve_devices, single
from fiducial.run.evaluation import EvaluationModule
from fiducial.run.ranks import global_rank
from fiducial.run.run import Run
from fiducial.run.trainer import evaluation_trainer, plain_interrupts
from fiducial.task import Task


def evaluate(task: Task[Any], run: Run) -> Result:
    """Metrics, scores of each item and a report on the test set."""
    return _run(task, run, "test", "Test metrics generated.")


def inference(task: Task[Any], run: Run) -> Result:
    """Outputs for data without labels."""
    return _run(task, run, "infer", "Inference metrics generated.")


def _run(task: Task[Any], run: Run, stage: Stage, message: str) -> Result:
    preflight(task, run)
    model_file = open_model(task, run)
    kind = runtime_of(model_file)
    devices = resolve_devices(run.section, run.action.name)
    if not kind.many_processes:
        devices = single(devices)
    runtime = task.runtime(run.spec)
    runtime.action, runtime.providers = run.action.name, tuple(run.section.providers)
    predictor = open_predictor(model_file, runtime, run.spec.encryption_key)
    if run.section.providers and predictor.runtime != "onnxruntime":
        LOGGER.warning("%s.providers: %s runs the model, which has none", run.action.name, predictor.runtime)
    if run.section.compile:
        if predictor.network is None:
            LOGGER.warning("%s.compile: %s runs the model as it is", run.action.name, predictor.runtime)
        else:
            predictor.compile(run.section.compile)
    evaluator = runtime.evaluator(stage, folder=run.folder)
    if stage == "infer" and getattr(run.section, "engine", "local") == "ray":
        from fiducial.run.cluster import ClusterJob, run_on_cluster

        run_on_cluster(ClusterJob.of(task, run.spec, model_file), runtime.loaders(stage), evaluator)
        results = evaluator.finish()
    else:
        trainer = evaluation_trainer(run, devices, task.policy(run.spec))
        module = EvaluationModule(predictor, evaluator)
        loaders = runtime.loaders(stage, rank=global_rank(), world_size=devices.num_processes)
        with plain_interrupts(trainer):
            trainer.test(module, dataloaders=list(loaders), verbose=False)
        results = module.results
        if not trainer.is_global_zero:
            return Result(run.action.name, run.folder)
    kpis = evaluator.kpis(results)
    files = evaluator.write(results, _facts(model_file, predictor))
    if kpis:
        run.status.write(message, kpi=kpis)
    return Result(run.action.name, run.folder, kpis, files)


def _facts(model_file: Path, predictor: Predictor) -> Mapping[str, Any]:
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
    return {**facts, **predictor.facts()}
