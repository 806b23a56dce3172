"""Whether a training still tells pictures apart: embeddings that all become one make every loss small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlrecog.neighbours import unit

__all__ = ["Health", "collapse", "collapsed"]

NEAR = 1e-2
"""Mean distance between unit embeddings below which they are all but one; an untrained network gives 0.4 and more."""


@dataclass(frozen=True)
class Health:
    """Of a batch, 0-d. ``mean_distance``: mean L2 distance of all pairs of unit embeddings, 0 to 2; near 1.4 where they
    point everywhere. ``spread``: root of the summed variance of their numbers, 0 to 1: 0 where all are one."""

    mean_distance: Tensor
    spread: Tensor


@torch.no_grad()
def collapse(embeddings_BD: Tensor) -> Health:
    """Look at a batch of two embeddings or more, of any length."""
    x_BD = unit(embeddings_BD.detach())
    batch = len(x_BD)
    distance_BB = (2 - 2 * x_BD @ x_BD.T).clamp(min=0).sqrt().fill_diagonal_(0)
    spread = x_BD.var(0, correction=0).sum().sqrt()
    return Health(distance_BB.sum() / (batch * (batch - 1)), spread)


def collapsed(mean_distance: float) -> str:
    """In words, what is wrong with a training of this mean distance; empty where nothing is."""
    if mean_distance >= NEAR:
        return ""
    return (
        f"all embeddings have become one (mean distance {mean_distance:.1e}): the network tells no pictures apart; "
        "lower train.optim.*.base_lr, or train with more classes in a batch"
    )
