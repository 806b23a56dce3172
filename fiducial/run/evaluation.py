"""Running a predictor over a loader, on one process or many; the outputs go to an evaluator."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from torch import nn

from fiducial.run.console import LOGGER
from fiducial.task import Evaluator, Predictor


class EvaluationModule(pl.LightningModule):
    """Hands every batch to the predictor and its output to the evaluator."""

    def __init__(self, predictor: Predictor, evaluator: Evaluator) -> None:
        super().__init__()
        self.predictor, self.evaluator = predictor, evaluator
        network = getattr(predictor, "network", None)
        self.network = network if isinstance(network, nn.Module) else nn.Identity()
        self.results: Any = None

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluator.update(self.predictor.predict(batch), batch)

    def on_test_epoch_start(self) -> None:
        self._start = time.monotonic()

    def on_test_epoch_end(self) -> None:
        self.results = self.evaluator.finish()
        LOGGER.info("%s: %.1f s for the whole split", self.predictor.runtime, time.monotonic() - self._start)
