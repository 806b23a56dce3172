"""The optimizer of a part of the network: a group for each tensor, so that biases have their own rate and decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fiducial.training.optim import fused

__all__ = ["PartOptimizer"]


@dataclass(frozen=True)
class PartOptimizer:
    """``name`` is a class of torch.optim; a tensor with "bias" in its name gets ``base_lr * bias_lr_factor`` and
    ``weight_decay_bias``, all others, those of norms too, ``base_lr`` and ``weight_decay``."""

    name: str = "Adam"
    base_lr: float = 3.5e-4
    bias_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    weight_decay_bias: float = 5e-4

    def build(self, part: nn.Module) -> torch.optim.Optimizer:
        """The optimizer. A tensor that is not trained has its group all the same, as in TAO's checkpoints."""
        groups = [{"params": [tensor], **self._group(name)} for name, tensor in part.named_parameters()]
        arguments: dict[str, Any] = {"momentum": self.momentum} if self.name == "SGD" else {}
        kind: type[torch.optim.Optimizer] = getattr(torch.optim, self.name)
        made: torch.optim.Optimizer = kind(groups, lr=self.base_lr, **arguments, **fused(kind, groups))  # type: ignore[call-arg]
        return made

    def _group(self, name: str) -> dict[str, float]:
        if "bias" in name:
            return {"lr": self.base_lr * self.bias_lr_factor, "weight_decay": self.weight_decay_bias}
        return {"lr": self.base_lr, "weight_decay": self.weight_decay}
