"""How fast and how large a trained model is, for searches that weigh this. In the process of its training."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

from fiducial.actions.perform import compose_for, known_action, read_spec
from fiducial.automl.goal import MEASURED
from fiducial.errors import CheckpointError
from fiducial.run.console import LOGGER
from fiducial.task import Task

_REPEATS = 7


def measure(task: Task[Any], spec_file: str) -> None:
    """Write ``measured.json`` beside the ``train`` folder: milliseconds per item of a validation batch, parameters.

    Where no checkpoint was kept, nothing.
    """
    import torch
    from pytorch_lightning.utilities import move_data_to_device

    from fiducial.checkpoints.atomic import save_atomically
    from fiducial.checkpoints.resolving import resolve_model_file
    from fiducial.deploy.kinds import open_predictor

    task, composed = compose_for([task], known_action([task], "train"), read_spec([task], Path(spec_file), ()), {})
    folder = Path(composed.spec.results_dir)
    try:
        found = resolve_model_file(folder, results_dir=None, prefix=task.prefix, key="automl")
    except CheckpointError as error:  # no validation gave a number
        LOGGER.warning("nothing to measure: %s", error)
        return
    runtime = task.runtime(composed.spec)
    runtime.action = "evaluate"
    predictor = open_predictor(found.path, runtime, composed.spec.encryption_key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor.module.to(device)
    batch = move_data_to_device(next(iter(runtime.loaders("val")[0])), device)
    numbers = {
        MEASURED["latency"]: _milliseconds(predictor, batch, device) / max(1, _items(batch)),
        MEASURED["size"]: sum(p.numel() for p in predictor.module.parameters()) / 1e6,
    }
    save_atomically(folder.parent / "measured.json", partial(_write, json.dumps(numbers)))


def _milliseconds(predictor: Any, batch: Any, device: Any) -> float:
    import torch

    times = []
    for _ in range(_REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        predictor.predict(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[1:])


def _items(batch: Any) -> int:
    values = batch.values() if isinstance(batch, dict) else [batch]
    return next((len(value) for value in values if hasattr(value, "__len__") and not isinstance(value, str)), 1)


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())
