"""How well the backbone's features tell an object from what is around it (Lan et al. 2023, "clustering score")."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["cluster_score", "on_grid"]


def cluster_score(feature_Dhw: Tensor, object_hw: Tensor) -> float:
    """The mean squared distance of a cell's feature to the centre of its class, object or background; lower is better.

    Features and centres have length 1, so that the score is in 0..4. ``object``: bool.
    """
    feature_ND, inside_N = F.normalize(feature_Dhw.float().flatten(1).T, dim=1), object_hw.flatten()
    classes = [feature_ND[own] for own in (inside_N, ~inside_N) if own.any()]
    distances = [(own - F.normalize(own.mean(0), dim=0)).square().sum(1) for own in classes]
    return float(torch.cat(distances).mean())


def on_grid(mask: NDArray[Any], height: int, width: int) -> Tensor:
    """A mask as cells, bool ``(height, width)``: of the object are those that it fills at least half of."""
    filled = torch.from_numpy((mask != 0).astype("float32"))[None, None]
    return F.interpolate(filled, size=(height, width), mode="area")[0, 0] >= 0.5
