"""What runs in evaluation: a network in torch, on pictures, to embeddings."""

from __future__ import annotations

import torch

from fiducial.prediction import Batch, Outputs, Predictor
from mlrecog.model import Recognizer

__all__ = ["EMBEDDING", "Embedder"]

EMBEDDING = "fc_pred"
"""TAO's name of the network's output."""


class Embedder(Predictor):
    """Runs a :class:`Recognizer` in torch."""

    runtime = "torch"

    def __init__(self, network: Recognizer) -> None:
        self.network: torch.nn.Module = network.eval()

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        """``fc_pred`` ``(B, D)``, of any length."""
        return {EMBEDDING: self.module(batch["image"])}
