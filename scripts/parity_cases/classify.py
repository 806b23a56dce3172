"""ChangeNet classify: networks, training steps, loss, metrics, schedule and sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changenet.classify.losses import contrastive_loss
from changenet.classify.metrics import tao_counts
from changenet.classify.model import build_classifier, score
from changenet.classify.sampling import fpratio_weights
from fiducial.backbones.names import BACKBONES
from fiducial.training.optim import POLICIES, build_optimizer, build_schedule
from parity_cases import Case, NotBuilt, Output, runs
from parity_cases.steps import Network, train


@dataclass(frozen=True)
class _Pair:
    """A network and its batch."""

    network: Network
    test: Tensor
    golden: Tensor
    label: Tensor
    class_weight: Tensor | None
    margin: float

    def output(self) -> Tensor:
        output: Tensor = self.network.model(self.test, self.golden)
        return output

    def loss(self, output: Tensor) -> Tensor:
        """What TAO trains with: weighted cross entropy, or the contrastive loss over all B × B combinations."""
        if output.ndim == 2:
            return F.cross_entropy(output, self.label.long(), self.class_weight)
        return contrastive_loss(output, self.label, margin=self.margin, broadcast=True)


@runs("classify_run")
def classify(case: Case) -> Mapping[str, Output]:
    """logits (learnable), siam_score, loss, and the gradients of the loss."""
    pair = _pair(case)
    needs_grad = case.wants("grad")
    with torch.set_grad_enabled(needs_grad):
        output = pair.output()
        loss = pair.loss(output)
    results: dict[str, Output] = {"logits": output, "siam_score": score(output), "loss": loss}
    if needs_grad:
        loss.backward()
        results |= pair.network.gradients(case)
    return results


@runs("classify_train_run")
def classify_training(case: Case) -> Mapping[str, Output]:
    """losses before each step, param_change_norms and after:<key> at the end; the rate is that of epoch 0."""
    pair = _pair(case)
    return train(pair.network, case, lambda: pair.loss(pair.output()))


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
    return _Pair(
        network=Network.load(model, weights, case),
        test=test,
        golden=inputs["img1"],
        label=inputs["label"].flatten(),
        class_weight=class_weight,
        margin=options["train_margin_euclid"],
    )
