"""Whole jobs as a person writes them first: every picture opened and resized, a plain loop, a plain network.

Each job reads the spec of the project's own run and writes what that writes: a checkpoint, numbers, and scores, masks
or neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain_pairs import Classify, Segment
from plain_pictures import Label, Recognize
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["ACTIONS", "JOBS"]

Job = Classify | Segment | Label | Recognize


def loader(job: Job, rows: Any, *, train: bool = False) -> DataLoader[Any]:
    order = job.batches(rows) if train else {}
    return DataLoader(rows, batch_size=job.batch_size, num_workers=job.workers, **order)


def train(job: Job, folder: Path) -> None:
    """An epoch, a pass over the validation rows, and a checkpoint."""
    optimizer = job.optimizer()
    job.network.train()
    for batch in loader(job, job.rows("train"), train=True):
        optimizer.zero_grad()
        job.loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        job.after_step()
    numbers = job.evaluated(*predicted(job, "validation"))
    state = {"state_dict": job.network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / f"{job.prefix}_latest.pth")
    (folder / "numbers.json").write_text(json.dumps(numbers))


@torch.no_grad()
def predicted(job: Job, split: str) -> tuple[list[Tensor], Any]:
    """The outputs of all rows, and the rows."""
    rows = job.rows(split)
    job.network.eval()
    return [job.outputs(batch) for batch in loader(job, rows)], rows


def load(job: Job, checkpoint: str) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    job.network.load_state_dict({k.removeprefix(job.part): v for k, v in state.items() if k.startswith(job.part)})


def evaluate(job: Job, folder: Path) -> None:
    load(job, job.spec["evaluate"]["checkpoint"])
    (folder / "numbers.json").write_text(json.dumps(job.evaluated(*predicted(job, "test"))))


def inference(job: Job, folder: Path) -> None:
    load(job, job.spec["inference"]["checkpoint"])
    job.write(*predicted(job, "infer"), folder)


JOBS: dict[str, Callable[[dict[str, Any]], Job]] = {
    "classify": Classify,
    "segment": Segment,
    "mal": Label,
    "mlrecog": Recognize,
}
ACTIONS: dict[str, Callable[[Job, Path], None]] = {"train": train, "evaluate": evaluate, "inference": inference}
