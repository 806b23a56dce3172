"""Optimizers and learning-rate policies by epoch, by their names in a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["POLICIES", "OptimizerRecipe", "build_optimizer", "build_schedule", "lr_factor"]


def _linear(epoch: int, num_epochs: int) -> float:
    return 1 - epoch / (num_epochs + 1)


def _step(epoch: int, num_epochs: int) -> float:
    return 0.1 ** (epoch // max(1, num_epochs // 3))


POLICIES: dict[str, Callable[[int, int], float]] = {"linear": _linear, "step": _step}


def lr_factor(policy: str, epoch: int, num_epochs: int) -> float:
    """What the base learning rate is multiplied with during ``epoch``, counted from 0.

    linear: ``1 - epoch / (num_epochs + 1)``, never 0. step: ``0.1 ** (epoch // (num_epochs // 3))``, with steps of at
    least one epoch (TAO divides by zero below three epochs).
    Raises: ValueError for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown learning-rate policy {policy!r}; known: {', '.join(POLICIES)}")
    return POLICIES[policy](epoch, num_epochs)


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """adamw (decoupled decay) and adam (L2 decay), which use ``betas``, or sgd with ``momentum``.

    ``parameters`` may be groups with settings of their own, as torch has them.

    Raises: ValueError for another name.
    """
    match name:
        case "adamw":
            return AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=betas)
        case "adam":
            return Adam(parameters, lr=lr, weight_decay=weight_decay, betas=betas)
        case "sgd":
            return SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum)
    raise ValueError(f"unknown optimizer {name!r}; known: adamw, adam, sgd")


def build_schedule(optimizer: Optimizer, policy: str, num_epochs: int) -> LambdaLR:
    """Steps once per epoch through :func:`lr_factor`. Raises: ValueError for an unknown policy."""
    return LambdaLR(optimizer, lambda epoch: lr_factor(policy, epoch, num_epochs))


@dataclass(frozen=True)
class OptimizerRecipe:
    """One optimizer for all parameters, whose learning rate follows a policy by epoch.

    ``arguments`` are those of :func:`build_optimizer` beside name and parameters.
    """

    arguments: Mapping[str, Any] = field(default_factory=lambda: {"lr": 1e-4, "weight_decay": 0.01})
    optim: str = "adamw"
    policy: str = "linear"
    num_epochs: int = 10

    def configure(self, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
        """What Lightning's ``configure_optimizers`` returns."""
        optimizer = build_optimizer(self.optim, parameters, **self.arguments)
        schedule = build_schedule(optimizer, self.policy, self.num_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
