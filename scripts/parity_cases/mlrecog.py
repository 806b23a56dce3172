"""ML Recog: networks, losses, training steps, schedule."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlrecog.losses import TripletObjective
from mlrecog.model import build_recognizer
from mlrecog.schedule import warmup_steps_factor
from mlrecog.trunks import TRUNKS
from parity_cases import Case, Output, runs
from parity_cases.steps import Network

UNUSED = "model.trunk.head."
"""The classifier that TAO leaves on FAN, and that crashes it; without gradient in the cases."""


@runs("lr_ml_recog")
def schedule(case: Case) -> Mapping[str, Output]:
    """The rate of each epoch."""
    return {name: _rates(**config) for name, config in case.config.items()}


def _rates(base_lr: float, epochs: int, warmup_method: Any, **options: Any) -> Output:
    factors = [warmup_steps_factor(epoch, method=warmup_method, **options) for epoch in range(epochs)]
    return base_lr * np.array(factors)


@runs("triplet")
def triplet(case: Case) -> Mapping[str, Output]:
    inputs, results = case.inputs(), dict[str, Output]()
    for epsilon in case.config["miner_function_margin"]:
        for margin in case.config["triplet_loss_margin"]:
            for kind in ("smooth", "hinge"):
                embeddings = inputs["embeddings"].clone().requires_grad_()
                mined = TripletObjective(margin, epsilon, smooth=kind == "smooth")(embeddings, inputs["labels"])
                mined.loss.backward()  # type: ignore[no-untyped-call]
                name = f"margin{margin}_eps{epsilon}_{kind}"
                results |= {name: mined.loss, f"{name}_grad": embeddings.grad}  # type: ignore[dict-item]
        pairs = (*mined.positive_pairs, *mined.negative_pairs)
        names = ("anchor_pos", "positive", "anchor_neg", "negative")
        results |= {f"mined_eps{epsilon}_{name}": places for name, places in zip(names, pairs, strict=True)}
    return results


def _network(case: Case) -> Network:
    model = case.config["model"]
    feat_dim = model["feat_dim"] if TRUNKS[model["backbone"]].has_linear_head else None
    size = (model["input_height"], model["input_width"])
    network = build_recognizer(model["backbone"], feat_dim=feat_dim, image_size=size)
    weights = {key: value for key, value in case.weights().items() if not key.startswith(UNUSED)}
    return Network.load(network, weights, case)


def _objective(case: Case) -> TripletObjective:
    train = case.config["train"]
    optim = train["optim"]
    return TripletObjective(optim["triplet_loss_margin"], optim["miner_function_margin"], smooth=train["smooth_loss"])


@runs("mlrecog_run")
def network(case: Case) -> Mapping[str, Output]:
    loaded, inputs = _network(case), case.inputs()
    recognizer: Any = loaded.model
    with torch.no_grad() if case.manifest.get("no_grad") else nullcontext():
        features = recognizer.trunk(inputs["x"])
        embeddings = recognizer.embedder(features)
        loss = _objective(case)(embeddings, inputs["labels"]).loss
    results: dict[str, Output] = {"trunk_features": features, "embeddings": embeddings, "loss": loss}
    if case.wants("grad_norms"):
        loss.backward()  # type: ignore[no-untyped-call]
        results |= loaded.gradients(case)
        unused = sum(key.startswith(UNUSED) for key, *_ in case.manifest["state_dict"])
        results["grad_norms"] = torch.cat((torch.as_tensor(results["grad_norms"]), torch.zeros(unused)))
    return results


@runs("mlrecog_train_run")
def training(case: Case) -> Mapping[str, Output]:
    loaded, inputs, train = _network(case), case.inputs(), case.config["train"]
    objective, optim = _objective(case), train["optim"]
    recognizer: Any = loaded.model
    parts = {"trunk": recognizer.trunk, "embedder": recognizer.embedder}
    optimizers = {name: _optimizer(part, name, optim) for name, part in parts.items()}
    before = {key: loaded.parameter(key).detach().clone() for key in loaded.keys}
    losses: list[Tensor] = []
    for _ in range(case.manifest["steps"]):
        recognizer.zero_grad()
        loss = objective(recognizer(inputs["x"]), inputs["labels"]).loss
        loss.backward()  # type: ignore[no-untyped-call]
        for name, optimizer in optimizers.items():
            torch.nn.utils.clip_grad_norm_(parts[name].parameters(), train["clip_grad_norm"])
            optimizer.step()
        losses.append(loss.detach())
    changes = [(loaded.parameter(key).detach() - before[key]).double().norm() for key in loaded.keys]
    results: dict[str, Output] = {f"lr_{name}": _rate(name, optim) for name in parts}
    results |= {"losses": torch.stack(losses), "param_change_norms": torch.stack(changes)}
    return results | {f"after:{key}": loaded.parameter(key) for key in case.manifest["after_of"]}


def _rate(part: str, optim: Mapping[str, Any]) -> float:
    warmup = {name: optim[name] for name in ("steps", "gamma", "warmup_factor", "warmup_iters")}
    return float(optim[part]["base_lr"] * warmup_steps_factor(0, method=optim["warmup_method"], **warmup))


def _optimizer(part: torch.nn.Module, name: str, optim: Mapping[str, Any]) -> torch.optim.Optimizer:
    """A group for each parameter."""
    options, rate = optim[name], _rate(name, optim)
    groups: list[dict[str, Any]] = []
    for key, parameter in part.named_parameters():
        is_bias = "bias" in key
        factor, decay = (options["bias_lr_factor"], "weight_decay_bias") if is_bias else (1, "weight_decay")
        groups.append({"params": [parameter], "lr": factor * rate, "weight_decay": options[decay]})
    optimizer: torch.optim.Optimizer = getattr(torch.optim, optim["name"])(groups)
    return optimizer
