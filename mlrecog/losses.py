"""The objective of ML Recog: a triplet loss on the triplets that are hard enough to teach something.

Miner and loss are pytorch-metric-learning's, run in float32: similarities of half precision would tie. Which pairs
are kept is a question of their values: a step on a GPU waits here for what it has computed, in this place alone.

Dims: B images of a batch (of all ranks, where embeddings are gathered), D numbers of an embedding, T triplets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
from torch import Tensor

__all__ = ["Mined", "TripletObjective"]


@dataclass(frozen=True)
class Mined:
    """The loss of a batch, and what it was made of; places are those of the batch."""

    loss: Tensor
    """0-d, with its gradient; 0 where there is no triplet."""
    positive_pairs: tuple[Tensor, Tensor]
    """Anchors and others of the same class that were kept, int64."""
    negative_pairs: tuple[Tensor, Tensor]
    """Anchors and others of another class that were kept, int64."""
    num_triplets: int
    """How many the kept pairs combine to."""
    active_share: Tensor
    """Share of the triplets in which the negative is not yet farther than the positive by the margin; 0-d, in 0..1."""


class TripletObjective:
    """Multi-similarity mining, then the triplet margin loss, both on embeddings of length 1.

    The miner keeps a positive that is less similar (cosine) than ``epsilon`` above the most similar negative of its
    anchor, and a negative that is more similar than ``epsilon`` below the least similar positive. A triplet costs
    ``v = |a - p| - |a - n| + margin``: with ``smooth`` log(1 + exp(v)), averaged over all triplets, else max(0, v),
    averaged over those above 0.
    """

    def __init__(self, margin: float = 0.3, epsilon: float = 0.1, *, smooth: bool = True) -> None:
        self.margin = margin
        self._miner = MultiSimilarityMiner(epsilon=epsilon)
        self._loss = TripletMarginLoss(margin=margin, smooth_loss=smooth)

    def __call__(self, embeddings_BD: Tensor, labels_B: Tensor) -> Mined:
        """Embeddings of any length and the class of each, int64."""
        with torch.autocast(embeddings_BD.device.type, enabled=False):
            embeddings_BD = embeddings_BD.float()
            anchor_pos, positive, anchor_neg, negative = self._miner(embeddings_BD, labels_B)
            triplets = convert_to_triplets((anchor_pos, positive, anchor_neg, negative), labels_B)
            loss = self._loss(embeddings_BD, labels_B, triplets)
            return Mined(
                loss=loss,
                positive_pairs=(anchor_pos, positive),
                negative_pairs=(anchor_neg, negative),
                num_triplets=len(triplets[0]),
                active_share=self._active_share(embeddings_BD.detach(), triplets),
            )

    def _active_share(self, embeddings_BD: Tensor, triplets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        anchor_T, positive_T, negative_T = triplets
        if not len(anchor_T):
            return embeddings_BD.new_zeros(())
        distance_BB: Tensor = self._loss.distance(embeddings_BD)
        violation_T = distance_BB[anchor_T, positive_T] - distance_BB[anchor_T, negative_T] + self.margin
        return (violation_T > 0).float().mean()
