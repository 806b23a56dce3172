"""``inference`` on a Ray cluster: Ray Data hands out the batches, each worker holds the model, one process collects.

A batch is what it would be on one machine, and outputs are taken in the order of the data, so that the files are the
same, byte for byte. Ray starts a worker that died anew and gives it its batches again.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fiducial.deploy.kinds import open_predictor
from fiducial.errors import MachineError, UserError, one_line, optional
from fiducial.prediction import Batch, Evaluator, Outputs
from fiducial.progress import followed
from fiducial.run.console import LOGGER
from fiducial.run.threads import yield_when_idle
from fiducial.spec.path_map import map_in_force, use_path_map
from fiducial.task import Task

__all__ = ["ClusterJob", "run_on_cluster"]

_KEY = "inference.ray_address"


@dataclass(frozen=True)
class ClusterJob:
    """What a worker must know to predict as this process would."""

    task: Task[Any]
    spec: Any
    model_file: Path
    threads: int
    path_map: Mapping[str, str]

    @classmethod
    def of(cls, task: Task[Any], spec: Any, model_file: Path) -> ClusterJob:
        """The job of this process; threads are its own, which the order of float sums depends on."""
        return cls(task, spec, model_file, torch.get_num_threads(), map_in_force())


class _Worker:
    """One actor: the model, and the loaders of the whole data set, of which it takes single batches."""

    def __init__(self, job: ClusterJob) -> None:
        self.error: UserError | None = None
        try:
            self._open(job)
        except UserError as error:  # told by the process that collects: Ray would start the worker again and again
            self.error = error

    def _open(self, job: ClusterJob) -> None:
        yield_when_idle()
        torch.set_num_threads(job.threads)
        use_path_map(job.path_map)
        runtime = job.task.runtime(job.spec)
        runtime.action = "inference"
        self.predictor = open_predictor(job.model_file, runtime, job.spec.encryption_key)
        if self.predictor.network is not None:
            if torch.cuda.is_available():
                self.predictor.network.cuda()
            if job.spec.inference.compile:
                self.predictor.compile(job.spec.inference.compile)
        self.loaders: list[Any] = list(runtime.loaders("infer"))  # each of a data set, or to be read in its order
        self.indices = [list(loader.batch_sampler) for loader in self.loaders]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        source, number = int(row["source"]), int(row["number"])
        try:
            result: Any = self.error or self._result(source, number)
        except UserError as error:
            result = error
        return {"place": int(row["place"]), "source": source, "result": pickle.dumps(result, pickle.HIGHEST_PROTOCOL)}

    def _result(self, source: int, number: int) -> tuple[Outputs, Batch]:
        loader = self.loaders[source]
        batch = loader.collate_fn([loader.dataset[index] for index in self.indices[source][number]])
        device = self.predictor.device
        with torch.inference_mode():
            outputs = self.predictor.predict(_moved(batch, device))
        return _moved(outputs, torch.device("cpu")), batch


def run_on_cluster(job: ClusterJob, loaders: Any, evaluator: Evaluator[Any]) -> None:
    """Predict everything that ``loaders`` go through on the cluster of the spec; the evaluator gets it in their order.

    Raises: UserError where Ray is not installed, no cluster is there, or a worker cannot run the job.
    """
    section = job.spec.inference
    sizes = [len(loader) for loader in loaders]
    rows = [
        {"place": place, "source": source, "number": number}
        for place, (source, number) in enumerate((s, n) for s, size in enumerate(sizes) for n in range(size))
    ]
    if not rows:
        return
    with _connected(section.ray_address) as ray:
        workers, gpus = _workers(ray, section.ray_workers, len(rows))
        LOGGER.info(
            "Ray %s: %d batches for %d workers%s", ray.__version__, len(rows), workers, f", {gpus} GPU each" * gpus
        )
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.max_errored_blocks = 0
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=gpus,
            num_cpus=job.threads if not gpus else 1,
        )
        _collect(ray, results, len(rows), evaluator)


def _collect(ray: Any, results: Any, count: int, evaluator: Evaluator[Any]) -> None:
    taken = 0
    try:
        for row in followed(results.iter_rows(), "batches", total=count):
            if row["place"] != taken:
                raise MachineError("Ray", f"gave batch {row['place']} in place of {taken}", "report this as a bug")
            outputs, batch = _unpacked(row["result"])
            evaluator.update(outputs, batch, source=row["source"])
            taken += 1
    except ray.exceptions.RayError as error:
        raise MachineError("Ray", one_line(str(error), 500), "see the log of that worker") from error
    if taken != count:
        raise MachineError("Ray", f"gave {taken} of {count} batches", "run the action again")


def _unpacked(content: bytes) -> tuple[Outputs, Batch]:
    """What a worker made of a batch. Raises: UserError where it could not."""
    result = pickle.loads(content)  # of our own workers
    if isinstance(result, UserError):
        raise result
    outputs, batch = result
    return outputs, batch


def _moved(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values.items()}


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; left as it was found. Raises: UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells its vendor nothing
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster of our own: with Ray's 15 others leave it no time
    ray: Any = optional("ray", extra="ray")
    optional("ray.data", extra="ray")
    was_connected = ray.is_initialized()
    if not was_connected:
        try:
            ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            fix = "start one with `ray start --head`, name another, or set local for one that ends with the run"
            raise MachineError(_KEY, f"no cluster at {address!r}: {one_line(str(error))}", fix) from None
    try:
        yield ray
    finally:
        if not was_connected:
            ray.shutdown()


def _workers(ray: Any, wanted: int | None, batches: int) -> tuple[int, int]:
    """How many workers, and GPUs for each."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    there = gpus or sum(node["Alive"] for node in ray.nodes())
    return max(1, min(wanted or there, batches)), int(gpus > 0)
