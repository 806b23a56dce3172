"""What the cases of both ChangeNets have in common: a network with stored weights, its gradients, training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fiducial.training.optim import build_optimizer, lr_factor
from parity_cases import Case, Output

PREFIX = "model."
"""Of the network's keys in a checkpoint of TAO."""


@dataclass(frozen=True)
class Network:
    """A model with the weights of a case."""

    model: nn.Module
    keys: Sequence[str]
    """Of the parameters (no buffers), as the checkpoint names and orders them."""

    @classmethod
    def load(cls, model: nn.Module, weights: Mapping[str, Tensor], case: Case) -> Network:
        """Put a checkpoint's weights into ``model``, in the mode that the case asks for."""
        model.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights.items()})
        model.train(case.manifest.get("mode") == "train")
        parameters = {PREFIX + name for name, _ in model.named_parameters()}
        return cls(model, [key for key in weights if key in parameters])

    def parameter(self, key: str) -> nn.Parameter:
        return self.model.get_parameter(key.removeprefix(PREFIX))

    def gradient(self, key: str) -> Tensor:
        parameter = self.parameter(key)
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def gradients(self, case: Case) -> dict[str, Output]:
        """grad_norms, and grad:<key> of the case's keys, after a backward pass."""
        norms = _norms([self.gradient(key) for key in self.keys])
        return {"grad_norms": norms, **{f"grad:{key}": self.gradient(key) for key in case.manifest.get("grad_of", [])}}


def train(network: Network, case: Case, loss_now: Callable[[], Tensor]) -> dict[str, Output]:
    """losses before each step, param_change_norms and after:<key> at the end; the rate is that of epoch 0."""
    options = case.config["train"]
    optim = options["optim"]
    optimizer = build_optimizer(
        optim["optim"],
        network.model.parameters(),
        lr=optim["lr"] * lr_factor(optim["policy"], 0, options["num_epochs"]),
        weight_decay=optim["weight_decay"],
        momentum=optim["momentum"],
    )
    before = {key: network.parameter(key).detach().clone() for key in network.keys}
    losses = []
    for _ in range(case.manifest["steps"]):
        optimizer.zero_grad()
        loss = loss_now()
        loss.backward()
        _zero_class_token_gradients(network.model)
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "param_change_norms": _norms([network.parameter(key).detach() - before[key] for key in network.keys]),
        **{f"after:{key}": network.parameter(key) for key in case.manifest.get("after_of", [])},
    }


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norms, summed in float64: some have tens of millions of elements."""
    return torch.stack([tensor.double().norm() for tensor in tensors])


def _zero_class_token_gradients(model: nn.Module) -> None:
    """FAN's class token changes no map, so that we neither run nor train its layers. TAO runs them and drops the token:
    their gradients are zeros, and the optimiser's weight decay moves them."""
    for name, parameter in model.named_parameters():
        if parameter.grad is None and name.startswith("backbone.cls_"):
            parameter.grad = torch.zeros_like(parameter)
