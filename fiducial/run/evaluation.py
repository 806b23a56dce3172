"""Running a predictor over a loader, on one device or many; the outputs go to an evaluator."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from fiducial.ops.linear import LINEARS
from fiducial.prediction import Batch, Evaluator, Predictor, split
from fiducial.run.console import LOGGER


class EvaluationModule(pl.LightningModule):
    """Hands every batch to the predictor and its output to the evaluator; a rank may have no batch at all."""

    def __init__(self, predictor: Predictor, evaluator: Evaluator[Any]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._start = time.monotonic()
        self.predictor, self.evaluator = predictor, evaluator
        self.network = nn.Identity() if predictor.network is None else predictor.network  # Lightning moves it

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluator.update(self.predictor.predict(batch), batch, source=dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if not self.evaluator.on_host:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        moved, kept = split(batch, self.evaluator.on_host)
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def on_test_start(self) -> None:
        self._start = time.monotonic()

    @cached_property
    def results(self) -> Any:
        """What the evaluator makes of all batches: to be asked for after the test, on every rank."""
        results = self.evaluator.finish()  # in no hook: Lightning calls none on a rank without batches
        LOGGER.info("%s: %.1f s for the whole split", self.predictor.runtime, time.monotonic() - self._start)
        if chosen := LINEARS.describe():
            LOGGER.info(chosen)
        return results
