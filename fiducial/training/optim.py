"""Optimizers and learning-rate policies by epoch, by their names in a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = [
    "POLICIES",
    "OptimizerRecipe",
    "build_optimizer",
    "build_schedule",
    "fused",
    "lr_factor",
    "settle",
]


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
    groups: list[Any] = list(parameters)
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    match name:
        case "adamw":
            return AdamW(groups, betas=betas, **options, **fused(AdamW, groups))
        case "adam":
            return Adam(groups, betas=betas, **options, **fused(Adam, groups))
        case "sgd":
            return SGD(groups, momentum=momentum, **options, **fused(SGD, groups))
    raise ValueError(f"unknown optimizer {name!r}; known: adamw, adam, sgd")


def fused(kind: type[Optimizer], parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The argument that makes one kernel of a step, where the kind of optimizer and the one device of all have it.

    On a CPU, too: a third of the time of a loop over many small tensors.
    """
    groups = (item["params"] if isinstance(item, dict) else [item] for item in parameters)
    devices = {parameter.device.type for group in groups for parameter in group}
    has_kernel = len(devices) == 1 and devices <= {"cpu", "cuda"}
    return {"fused": True} if has_kernel and "fused" in signature(kind).parameters else {}


def settle(optimizer: Optimizer) -> None:
    """Let an optimizer step as it was made to, after it took the state of one that was fused, or was not.

    What a checkpoint holds is the same for both, but for the switch, and for where the steps are counted.
    """
    if "fused" not in optimizer.defaults:
        return
    is_fused = bool(optimizer.defaults["fused"])
    for group in optimizer.param_groups:
        group["fused"] = optimizer.defaults["fused"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(parameter.device if is_fused else "cpu", torch.float32)


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
