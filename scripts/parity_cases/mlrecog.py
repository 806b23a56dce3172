"""ML Recog: networks, losses, training steps, schedule."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fiducial.data.normalization import Normalization
from mlrecog.losses import TripletObjective
from mlrecog.metrics import clusters, retrieval
from mlrecog.model import build_recognizer
from mlrecog.neighbours import nearest, unit
from mlrecog.optimizers import PartOptimizer
from mlrecog.schedule import warmup_steps_factor
from mlrecog.transforms import EvalTransform
from mlrecog.trunks import TRUNKS
from parity_cases import Case, Output, recipe, runs
from parity_cases.steps import Network

RETRIEVAL = (
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
    "precision_at_1",
    "r_precision",
)
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
    options = {**optim[name], "base_lr": _rate(name, optim)}
    return PartOptimizer(optim["name"], **options).build(part)


@runs("ml_metrics")
def metrics(case: Case) -> dict[str, Output]:
    """Retrieval and clustering of queries around the centres of their classes in a gallery around the same."""
    queries, query_labels, gallery, gallery_labels = _around_centres(case)
    found = retrieval(queries, query_labels, gallery, gallery_labels)
    outputs: dict[str, Output] = dict(clusters(queries, query_labels))
    for name in RETRIEVAL:
        outputs[name] = found.mean(name, by_class=False)
        outputs[f"per_class_{name}"] = np.array(list(found.by_class(name).values()))
    return outputs


@runs("ml_knn")
def knn(case: Case) -> dict[str, Output]:
    queries, _, gallery, gallery_labels = _around_centres(case)
    found = nearest(queries, gallery, case.config["topk"])
    return {"distances": found.distances_Qk, "indices": found.places_Qk, "classes": gallery_labels[found.places_Qk]}


def _around_centres(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, noise = case.inputs(), case.config["noise"]
    sides = []
    for side in ("query", "gallery"):
        labels = inputs[f"{side}_labels"]
        sides += [unit(inputs["centres"][labels] + noise * inputs[f"{side}_noise"]), labels]
    return sides[0], sides[1], sides[2], sides[3]


@runs("ml_data")
def data(case: Case) -> dict[str, Output]:
    """TAO's evaluation transform, which takes width and height for height and width."""
    config = case.config
    normalize = Normalization(tuple(config["pixel_mean"]), tuple(config["pixel_std"]))
    transform = EvalTransform((config["input_width"], config["input_height"]), normalize)
    return {
        f"out{number}": transform(Image.fromarray(recipe.uint8_image(file["height"], file["width"], file["seed"])))
        for number, file in enumerate(case.manifest["files"])
    }
