"""Optimisers and per-epoch learning-rate policies, by their names in a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["POLICIES", "build_optimizer", "build_schedule", "lr_factor"]


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
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """adamw (decoupled decay) and adam (L2 decay), which use ``betas``, or sgd with ``momentum``; one parameter group.

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
