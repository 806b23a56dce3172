"""MAL: data, networks, losses, mean field, training steps, schedule, masks in the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mal.crop import crop_around, stretched
from mal.decode import mask_prob, place
from mal.losses import dice_loss, mil_loss
from mal.mean_field import MeanField
from mal.metrics import ClassIou
from mal.model import MaskNetwork, build_labeler
from mal.schedule import CosineSchedule, peak_lr
from mal.training import Objective, ema_update
from parity_cases import Case, Output, recipe, runs


@runs("lr_mal")
def schedule(case: Case) -> Mapping[str, Output]:
    """The rate of each update, in order."""
    return {name: _rates(**config) for name, config in case.config.items()}


def _rates(lr: float, devices: int, batch_size: int, min_lr_rate: float, iters_per_epoch: int, **rest: Any) -> Output:
    peak = peak_lr(lr, devices, batch_size)
    cosine = CosineSchedule(peak, peak * min_lr_rate, **rest)
    places = np.arange(cosine.num_epochs * iters_per_epoch - 1) / iters_per_epoch
    return np.array([peak, *(cosine.at(place) for place in places)])


@runs("mal_losses_run")
def losses(case: Case) -> Mapping[str, Output]:
    inputs = case.inputs()
    results: dict[str, Output] = {}
    for name, loss in (("dice", dice_loss), ("mil", mil_loss)):
        pred = inputs["pred"].clone().requires_grad_()
        value = loss(pred, inputs["target"].float())
        value.sum().backward()
        results |= {f"{name}_loss": value, f"{name}_grad": pred.grad}  # type: ignore[dict-item]
    return results


@runs("mean_field_run")
def mean_field(case: Case) -> Mapping[str, Output]:
    inputs = case.inputs()
    return {"mask": MeanField()(inputs["image"], inputs["seg"], inputs["targets"]).byte()}


def _networks(case: Case) -> tuple[MaskNetwork, MaskNetwork]:
    model = case.config["model"]
    weights = case.weights()
    found = []
    for name in ("student", "teacher"):
        network = build_labeler(model["arch"], adjust_scale=not model.get("not_adjust_scale", False))
        network.load_state_dict({k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")})
        found.append(network.eval())
    return found[0], found[1]


def _box_masks(boxes: Tensor, size: int) -> Tensor:
    masks = torch.zeros(len(boxes), 1, size, size)
    for mask, box in zip(masks, boxes, strict=True):
        x0, y0, x1, y1 = (int(corner) for corner in box)
        mask[0, y0 : y1 + 1, x0 : x1 + 1] = 1
    return masks


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@runs("mal_run")
def networks(case: Case) -> Mapping[str, Output]:
    student, teacher = _networks(case)
    inputs = case.inputs()
    image, boxes = inputs["image"], inputs["bbox"].float()
    mask, area = _box_masks(boxes, image.shape[-1]), _area(boxes)
    objective = Objective()
    with torch.no_grad():
        teacher_seg = teacher(image, area)
        features = student.backbone.forward_features(image)
    seg = student(image, area)
    results: dict[str, Output] = {"student_seg": seg, "teacher_seg": teacher_seg, "student_feat": features}
    for suffix, epoch in (("_epoch0_step500", 0), ("", 1)):
        parts = objective(seg, teacher_seg, image, mask, epoch=epoch, step=500)
        results |= {f"loss_mil{suffix}": parts.mil, f"loss_crf{suffix}": parts.crf, f"loss{suffix}": parts.total}
    parts.total.backward()
    results["refined_mask"] = parts.refined.byte()
    gradients = {f"student.{name}": p.grad for name, p in student.named_parameters()}
    norms = [0.0 if g is None else float(g.double().norm()) for g in gradients.values()]
    results["grad_norms"] = np.array(norms)
    results |= {f"grad:{name}": gradients[name] for name in case.manifest.get("grad_of", ())}
    ema_update(teacher.parameters(), student.parameters(), momentum=0.996)
    after = teacher.state_dict()
    results |= {f"teacher_after:{name}": after[name] for name in case.manifest.get("ema_of", ())}
    return results


@runs("mal_train_run")
def training(case: Case) -> Mapping[str, Output]:
    student, teacher = _networks(case)
    inputs, train = case.inputs(), case.config["train"]
    image, boxes = inputs["image"], inputs["bbox"].float()
    mask, area = _box_masks(boxes, image.shape[-1]), _area(boxes)
    before = {f"{n}.{k}": v.clone() for n, m in (("student", student), ("teacher", teacher)) for k, v in _named(m)}
    optimizer = torch.optim.AdamW(
        [*student.parameters()], lr=train["lr"], betas=(0.9, 0.9), eps=1e-8, weight_decay=5e-4
    )
    cosine = CosineSchedule(train["lr"], train["min_lr"], train["num_epochs"], train["warmup_epochs"])
    rates, losses = [], []
    first = case.manifest["first_local_step"]
    for step in range(first, first + case.manifest["steps"]):
        with torch.no_grad():
            teacher_seg = teacher(image, area)
        parts = Objective()(student(image, area), teacher_seg, image, mask, epoch=0, step=step)
        optimizer.zero_grad()
        parts.total.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.param_groups[0]["lr"] = cosine.at(step / case.manifest["iters_per_epoch"])
        ema_update(teacher.parameters(), student.parameters(), momentum=0.996)
        losses.append(float(parts.total.detach()))
    after = {f"{n}.{k}": v for n, m in (("student", student), ("teacher", teacher)) for k, v in _named(m)}
    changes = [float((after[key] - before[key]).double().norm()) for key in before]
    results: dict[str, Output] = {
        "losses": np.array(losses),
        "lr": np.array(rates),
        "param_change_norms": np.array(changes),
    }
    return results | {f"after:{name}": after[name] for name in case.manifest.get("after_of", ())}


def _named(network: MaskNetwork) -> list[tuple[str, Tensor]]:
    return [(name, parameter.detach()) for name, parameter in network.named_parameters()]


@runs("mal_val_run")
def validation(case: Case) -> Mapping[str, Output]:
    student, _ = _networks(case)
    inputs, picture = case.inputs(), case.manifest["picture"]
    boxes = [tuple(box) for box in case.manifest["boxes_xyxy"]]
    size = inputs["image"].shape[-1]
    where = {"width": picture["width"], "height": picture["height"]}
    crops = [crop_around(box, [0.3] * 4) for box in boxes]
    masks = [crop.box_mask(box, wrapped=False, **where) for crop, box in zip(crops, boxes, strict=True)]
    boxmask = torch.from_numpy(np.stack([stretched(mask, size) for mask in masks]))[:, None]
    with torch.no_grad():
        prob = mask_prob(student(inputs["image"], _area(torch.tensor(boxes))), boxmask.float())
    results: dict[str, Output] = {
        "ext_boxes": np.array([[c.x0, c.y0, c.x1, c.y1] for c in crops], np.int32),
        "boxmasks": boxmask.byte(),
    }
    metric = ClassIou(3)
    for i, (crop, box) in enumerate(zip(crops, boxes, strict=True)):
        placed = place(prob[i, 0], crop, threshold=0.1, **where)
        iou = placed.iou(inputs["gt"][i].numpy())
        results |= {f"mask_{i}": placed.full().astype(np.uint8), f"iou_{i}": iou}
        metric.add(i % 3, iou, (box[2] - box[0]) * (box[3] - box[1]))
    return results | metric.kpis()


@runs("mal_data")
def data(case: Case) -> Mapping[str, Output]:
    """Evaluation crops of an annotated picture."""
    import tempfile
    from pathlib import Path

    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        for entry in case.manifest["files"]:
            pixels = recipe.uint8_image(entry["height"], entry["width"], entry["seed"])
            Image.fromarray(pixels).save(Path(folder, entry["path"]))
        return _evaluation_items(case, Path(folder))


def _evaluation_items(case: Case, folder: Any) -> Mapping[str, Output]:
    import json

    from mal.annotations import read_annotations
    from mal.data import BoxDataset, BoxReader

    path = folder / "annotations.json"
    path.write_text(json.dumps(case.manifest["annotations"]), encoding="utf-8")
    annotations = read_annotations(path)
    margin = case.config["test_margin_rate"][0]
    reader = BoxReader(annotations, folder, crop_size=case.config["crop_size"], margin=margin / 2)
    dataset = BoxDataset(reader, annotations.boxes)
    results: dict[str, Output] = {}
    for i, box in enumerate(annotations.boxes):
        item, crop = dataset[i], crop_around(box.corners, [margin / 2] * 4)
        mask = annotations.mask(box)
        shown = stretched(crop.pixels(mask[..., None].repeat(3, 2))[..., 0], case.config["crop_size"])
        results |= {
            f"image_{i}": item["image"],
            f"boxmask_{i}": item["boxmask"],
            f"mask_{i}": shown[None].astype(np.float32),
            f"bbox_{i}": np.array(box.corners, np.float32),
            f"ext_boxes_{i}": np.array([crop.x0, crop.y0, crop.x1, crop.y1], np.int32),
            f"ext_h_{i}": np.int32(crop.height),
            f"ext_w_{i}": np.int32(crop.width),
            f"compact_category_id_{i}": np.int64(box.category + 1),
            f"id_{i}": np.int64(box.id),
            f"gtmask_{i}": mask,
        }
    return results
