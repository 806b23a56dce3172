"""Where trainings run side by side: each on GPUs of its own, or with its share of the processor's cores."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Place", "places_of"]

_MOST = 4
"""Trainings at a time where the spec does not say it."""


@dataclass(frozen=True)
class Place:
    """What one training gets. ``gpus`` None: what its spec says."""

    env: Mapping[str, str]
    gpus: int | None = None


def places_of(spec: Any, concurrent: int | None) -> list[Place]:
    """One place for each training that may run at a time. With a single one, the spec's own devices are used."""
    wanted = max(spec.train.num_gpus, len(spec.train.gpu_ids))
    gpus = visible_gpus()
    groups = [gpus[i : i + wanted] for i in range(0, len(gpus) - wanted + 1, wanted)]
    count = concurrent or max(1, min(_MOST, len(groups)))
    if count == 1:
        return [Place({})]
    if not groups:
        threads = str(max(1, (os.cpu_count() or 1) // count))
        return [Place({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)})] * count
    return [
        Place({"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)]), "TAO_VISIBLE_DEVICES": ""}, wanted)
        for i in range(count)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them; asked without starting CUDA."""
    told = os.environ.get("TAO_VISIBLE_DEVICES") or os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
