"""The loss of the euclidean network; the learnable one trains with ``nn.CrossEntropyLoss(weight=cls_weight)``."""

from __future__ import annotations

from torch import Tensor

__all__ = ["contrastive_loss"]


def contrastive_loss(distance_B: Tensor, label_B: Tensor, *, margin: float = 2.0, broadcast: bool = False) -> Tensor:
    """Mean of ``(1 - y) d^2 + y max(0, margin - d)^2`` (Hadsell et al. 2006, eq. 4, without its 1/2 factors).

    Shapes: both ``(B,)``; ``label`` 0 = same, 1 = different, any numeric dtype; returns a scalar.
    Units: ``distance`` and ``margin`` are Euclidean embedding distances, ``distance`` >= 0.
    ``broadcast``: the mean is over all B × B combinations of a distance and a label, so that the loss no longer knows
    which pair is a defect: what TAO trains with.
    Raises: ValueError if the shapes differ or ``margin`` <= 0.
    """
    if distance_B.ndim != 1 or distance_B.shape != label_B.shape:
        raise ValueError(f"need two (B,) tensors, got {tuple(distance_B.shape)} and {tuple(label_B.shape)}")
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    same, different = distance_B.square(), (margin - distance_B).clamp(min=0).square()
    label = label_B.to(distance_B.dtype)
    if broadcast:
        # TAO-compat: labels (B, 1) against distances (B,); per-pair labels are the clean design and the default.
        label = label[:, None]
    return ((1 - label) * same + label * different).mean()
