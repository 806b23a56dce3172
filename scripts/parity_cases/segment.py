"""ChangeNet segment: networks, training steps, losses, metrics and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from changenet.config import ExperimentSpec
from changenet.segment.counts import IGNORED
from changenet.segment.losses import cross_entropy, mmiou, multi_scale
from changenet.segment.metrics import confusion, summary
from changenet.segment.model import ChangeSegmenter, average_predictions, build_segmenter
from fiducial.backbones.names import BACKBONES
from parity_cases import Case, NotBuilt, Output, recipe, runs
from parity_cases.steps import Network, train


@dataclass(frozen=True)
class _Pair:
    """A network and its batch."""

    network: Network
    model: ChangeSegmenter
    before: Tensor
    after: Tensor
    label: Tensor
    weights: Sequence[float]
    """Of the five predictions in the loss."""


@runs("segment_run")
def segment(case: Case) -> Mapping[str, Output]:
    """pred0..4, the losses on them, their average, and gradients of the multi-scale loss."""
    pair = _pair(case)
    needs_grad = case.wants("grad")
    with torch.set_grad_enabled(needs_grad):
        predictions = pair.model.predictions(pair.before, pair.after)
        total = multi_scale(predictions, pair.label, pair.weights, cross_entropy)
    if needs_grad:
        total.backward()
    final = predictions[-1].detach()
    label = torch.where(pair.label == IGNORED, 0, pair.label)
    results: dict[str, Output] = {f"pred{i}": logit.detach() for i, logit in enumerate(predictions)}
    results |= {
        "loss_single_scale": cross_entropy(final, pair.label),
        "loss_multi_scale": total,
        "multi_scale_infer": average_predictions([logit.detach() for logit in predictions]),
        "mmiou_loss": mmiou(final, label, absent_classes=True),
    }
    if needs_grad:
        results |= pair.network.gradients(case)
    return results


@runs("segment_train_run")
def segment_training(case: Case) -> Mapping[str, Output]:
    """losses before each step, param_change_norms and after:<key> at the end; the rate is that of epoch 0."""
    pair = _pair(case)
    kind = {"ce": cross_entropy, "mmiou": partial(mmiou, absent_classes=True)}[case.config["train"]["segment"]["loss"]]

    def loss_now() -> Tensor:
        (final,) = pair.model.predictions(pair.before, pair.after, auxiliary=False)
        return kind(final, pair.label)

    return train(pair.network, case, loss_now)


@runs("ce_losses")
def losses(case: Case) -> Mapping[str, Output]:
    """Cross entropy (also of small logits, and classify's weighted one) and mmiou, with gradients."""
    inputs = case.inputs()
    label_BHW = inputs["label"][:, 0]
    masked_BHW = label_BHW.clone()
    masked_BHW[:, :3] = IGNORED
    results: dict[str, Output] = {}
    tao_mmiou = partial(mmiou, absent_classes=True)
    for name, kind, label in (("ce", cross_entropy, masked_BHW), ("mmiou", tao_mmiou, label_BHW)):
        logits = inputs["logits"].clone().requires_grad_()
        loss = kind(logits, label)
        (results[f"{name}_grad"],) = torch.autograd.grad(loss, logits)
        results[name] = loss
    results["ce_resized_logits"] = cross_entropy(inputs["small_logits"], masked_BHW)
    weight = torch.tensor(case.config["cls_weight"])
    results["weighted_ce"] = F.cross_entropy(inputs["class_logits"], inputs["class_labels"], weight)
    return results


@runs("seg_metrics")
def metrics(case: Case) -> Mapping[str, Output]:
    """The confusion matrix of two updates, its metrics, and the mean F1 of each update alone."""
    inputs, num_classes = case.inputs(), case.config["num_classes"]
    gt = inputs["gt"].clone()
    gt[:, :2] = IGNORED
    matrices = confusion(inputs["pred"], gt, num_classes).numpy()
    half = len(matrices) // 2
    total = matrices.sum(0)
    return {
        **summary(total),
        "confusion": total.astype(np.float64),
        "batch_mean_f1": np.array([summary(part.sum(0))["mf1"] for part in (matrices[:half], matrices[half:])]),
    }


@runs("seg_data")
def data(case: Case) -> Mapping[str, Output]:
    """A<i>, B<i>, L<i>: the items of a split as evaluation reads them."""
    from changenet.segment.runtime import SegmentRuntime

    with TemporaryDirectory() as folder:
        root = Path(folder)
        for entry in case.manifest["files"]:
            _write_file(root, entry)
        (root / "list").mkdir()
        (root / "list" / "test.txt").write_text("".join(f"{name}\n" for name in case.manifest["list"]))
        options = {"root_dir": folder, **case.config}
        spec = ExperimentSpec.model_validate({"task": "segment", "dataset": {"segment": options}})
        dataset = SegmentRuntime(spec).dataset("test")
        items = [dataset[index] for index in range(len(dataset))]
    results: dict[str, Output] = {}
    for index, item in enumerate(items):
        results |= {f"A{index}": item["A"], f"B{index}": item["B"], f"L{index}": item["L"][None]}
    return results


def _write_file(root: Path, entry: Mapping[str, object]) -> None:
    options = {name: value for name, value in entry.items() if name not in ("path", "label")}
    limit = entry.get("label")
    if limit is None:
        pixels = recipe.uint8_image(**options)
    else:
        pixels = np.where(recipe.uint8_image(channels=1, **options)[..., 0] > limit, 255, 0).astype(np.uint8)
    path = root / str(entry["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _pair(case: Case) -> _Pair:
    spec, data_options = case.config["model"], case.config["dataset"]["segment"]
    backbone, head = spec["backbone"], spec["decode_head"]
    if backbone["type"] not in BACKBONES:
        raise NotBuilt(f"backbone {backbone['type']}")
    inputs = case.inputs()
    before = inputs["A"]
    model = build_segmenter(
        backbone=backbone["type"],
        image_size=(before.shape[-2], before.shape[-1]),
        num_classes=data_options["num_classes"],
        embed_dim=head["decoder_params"]["embed_dim"],
        use_summary_token=head.get("use_summary_token", False),
    )
    if backbone.get("freeze_backbone"):
        model.backbone.freeze()  # type: ignore[operator]
    return _Pair(
        network=Network.load(model, case.weights(), case),
        model=model,
        before=before,
        after=inputs["B"],
        label=inputs["L"][:, 0],
        weights=case.config["train"]["segment"]["weights"],
    )
