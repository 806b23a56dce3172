"""ChangeNet classify: networks, training steps, loss, metrics, schedule and sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changenet.classify.losses import contrastive_loss
from changenet.classify.metrics import tao_counts
from changenet.classify.model import build_classifier, score
from fiducial.backbones.names import BACKBONES
from fiducial.data.samplers import fpratio_weights
from fiducial.optim import POLICIES, build_optimizer, build_schedule, lr_factor
from parity_cases import Case, NotBuilt, Output, runs

PREFIX = "model."
"""Of the network's keys in a checkpoint of TAO."""


@dataclass(frozen=True)
class _Pair:
    """A network with the weights of a case, and its batch."""

    model: nn.Module
    test: Tensor
    golden: Tensor
    label: Tensor
    class_weight: Tensor | None
    margin: float
    keys: Sequence[str]
    """Of the parameters (no buffers), as the checkpoint names and orders them."""

    def parameter(self, key: str) -> Tensor:
        return self.model.get_parameter(key.removeprefix(PREFIX))

    def loss(self, output: Tensor) -> Tensor:
        """What TAO trains with: weighted cross entropy, or the contrastive loss over all B × B combinations."""
        if output.ndim == 2:
            return F.cross_entropy(output, self.label.long(), self.class_weight)
        return contrastive_loss(output, self.label, margin=self.margin, broadcast=True)

    def gradient(self, key: str) -> Tensor:
        parameter = self.parameter(key)
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@runs("classify_run")
def classify(case: Case) -> Mapping[str, Output]:
    """logits (learnable), siam_score, loss, and the gradients of the loss."""
    pair = _pair(case)
    needs_grad = case.wants("grad")
    with torch.set_grad_enabled(needs_grad):
        output = pair.model(pair.test, pair.golden)
        loss = pair.loss(output)
    results: dict[str, Output] = {"logits": output, "siam_score": score(output), "loss": loss}
    if needs_grad:
        loss.backward()
        results["grad_norms"] = _norms([pair.gradient(key) for key in pair.keys])
        results |= {f"grad:{key}": pair.gradient(key) for key in case.manifest.get("grad_of", [])}
    return results


@runs("classify_train_run")
def classify_training(case: Case) -> Mapping[str, Output]:
    """losses before each step, param_change_norms and after:<key> at the end; the rate is that of epoch 0."""
    pair = _pair(case)
    train = case.config["train"]
    optim = train["optim"]
    optimizer = build_optimizer(
        optim["optim"],
        pair.model.parameters(),
        lr=optim["lr"] * lr_factor(optim["policy"], 0, train["num_epochs"]),
        weight_decay=optim["weight_decay"],
        momentum=optim["momentum"],
    )
    before = {key: pair.parameter(key).detach().clone() for key in pair.keys}
    losses = []
    for _ in range(case.manifest["steps"]):
        optimizer.zero_grad()
        loss = pair.loss(pair.model(pair.test, pair.golden))
        loss.backward()
        _zero_class_token_gradients(pair.model)
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "param_change_norms": _norms([pair.parameter(key).detach() - before[key] for key in pair.keys]),
        **{f"after:{key}": pair.parameter(key) for key in case.manifest.get("after_of", [])},
    }


@runs("contrastive")
def contrastive(case: Case) -> Mapping[str, Output]:
    """Loss and gradient per margin, with labels (B) and (B, 1)."""
    inputs = case.inputs()
    results: dict[str, Output] = {}
    for margin in case.config["margins"]:
        for labels, broadcast in (("labels_b", False), ("labels_b1", True)):
            distance = inputs["distance"].clone().requires_grad_()
            loss = contrastive_loss(distance, inputs["label"], margin=margin, broadcast=broadcast)
            (gradient,) = torch.autograd.grad(loss, distance)
            results |= {f"margin{margin}_{labels}": loss, f"margin{margin}_{labels}_grad": gradient}
    return results


@runs("aoi_metrics")
def aoi_metrics(case: Case) -> Mapping[str, Output]:
    """TAO's four percentages per margin."""
    inputs = case.inputs()
    return {
        f"margin{margin}_{name}": value
        for margin in case.config["margins"]
        for name, value in tao_counts(inputs["score"], inputs["label"].flatten(), margin).items()
    }


@runs("lr_changenet")
def learning_rates(case: Case) -> Mapping[str, Output]:
    """<policy>_<epochs>: the rate in use during every epoch."""
    results = {}
    for policy in POLICIES:
        for num_epochs in case.config["num_epochs"]:
            optimizer = build_optimizer("sgd", [nn.Parameter(torch.zeros(1))], lr=case.config["lr"], weight_decay=0)
            schedule = build_schedule(optimizer, policy, num_epochs)
            rates = []
            for _ in range(num_epochs):
                rates.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            results[f"{policy}_{num_epochs}"] = torch.tensor(rates, dtype=torch.float64)
    return results


@runs("oi_sampler")
def sampler_weights(case: Case) -> Mapping[str, Output]:
    """weights_<ratio>: one weight per row."""
    labels = [int(label != "PASS") for label in case.manifest["labels"]]
    return {f"weights_{ratio}": fpratio_weights(labels, ratio) for ratio in case.config["fpratio_sampling"]}


def _pair(case: Case) -> _Pair:
    spec, data = case.config["model"], case.config["dataset"]["classify"]
    backbone, head, options = spec["backbone"], spec["decode_head"], spec["classify"]
    if backbone["type"] not in BACKBONES:
        raise NotBuilt(f"backbone {backbone['type']}")
    inputs = case.inputs()
    test = inputs["img0"]
    model = build_classifier(
        backbone=backbone["type"],
        difference_module=options["difference_module"],
        image_size=(test.shape[-2], test.shape[-1]),
        embed_dim=head["decoder_params"]["embed_dim"],
        embed_dec=options["embed_dec"],
        num_classes=data["num_classes"],
        learnable_difference_modules=options["learnable_difference_modules"],
        embedding_vectors=options["embedding_vectors"],
        num_golden=data["num_golden"],
        use_summary_token=head["use_summary_token"],
        freeze_backbone=backbone["freeze_backbone"],
        feat_downsample=backbone["feat_downsample"],
    )
    weights = case.weights()
    class_weight = weights.pop("criterion.weight", None)
    model.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights.items()})
    model.train(case.manifest.get("mode") == "train")
    parameters = {PREFIX + name for name, _ in model.named_parameters()}
    return _Pair(
        model=model,
        test=test,
        golden=inputs["img1"],
        label=inputs["label"].flatten(),
        class_weight=class_weight,
        margin=options["train_margin_euclid"],
        keys=[key for key in weights if key in parameters],
    )


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norms, summed in float64: some have tens of millions of elements."""
    return torch.stack([tensor.double().norm() for tensor in tensors])


def _zero_class_token_gradients(model: nn.Module) -> None:
    """FAN's class token changes no map, so that we neither run nor train its layers. TAO runs them and drops the token:
    their gradients are zeros, and the optimiser's weight decay moves them."""
    for name, parameter in model.named_parameters():
        if parameter.grad is None and name.startswith("backbone.cls_"):
            parameter.grad = torch.zeros_like(parameter)
