"""Everything random of a run follows from (seed, epoch, step, rank)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part; the same on every machine."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def seed_run(train: Any) -> None:
    """Seed Python, NumPy and torch, and set cuDNN's switches, as ``train.seed`` and ``train.cudnn`` say."""
    if train.seed >= 0:
        pl.seed_everything(train.seed, workers=True, verbose=False)
    torch.backends.cudnn.benchmark = train.cudnn.benchmark
    torch.backends.cudnn.deterministic = train.cudnn.deterministic


class StepSeed(Callback):
    """Reseeds torch before every training batch, so that a resumed run draws what the uninterrupted one would have."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


class Position(Callback):
    """Which batch of which epoch training begins with; set by :class:`~fiducial.run.resume.ResumingCheckpointIO`."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.batch = int(state_dict["epoch"]), int(state_dict["batch"])
