"""The package as a library: trained labellers (:func:`load`), and actions as a function (:func:`run`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fiducial.actions.perform import perform
from fiducial.actions.result import Result
from fiducial.data.pictures import Picture, as_rgb
from fiducial.deploy.card import ModelCard
from fiducial.deploy.kinds import open_predictor, runtime_of
from fiducial.errors import DatasetError, one_line
from fiducial.library import (
    Where,
    checkpoint_of,
    foreign,
    model_file,
    predictor_of,
    ready,
    spec_of_export,
    stored_tree,
)
from fiducial.prediction import Predictor
from fiducial.spec.compose import Source, compose
from mal.annotations import Box
from mal.config import ExperimentSpec
from mal.crop import Corners, stretched
from mal.data import IMAGENET
from mal.decode import PlacedMask
from mal.label_formats import Polygon, polygons
from mal.quality import box_fit
from mal.runtime import MalRuntime
from mal.task import MAL
from mal.weights import is_mal

__all__ = ["Labeler", "LabelledBox", "load", "run"]

_LARGEST_BATCH = 16
_PIXELS_OF_A_CACHE = 2**19
"""Pixels of crops from which on a CPU, whose caches the activations outgrow, gets slower: two of 512, ten of 224."""


@dataclass(frozen=True)
class LabelledBox:
    """What was found for one box. ``mask``: bool ``(height, width)`` of the picture.

    ``score``: how well the mask fills its box, 0..1, a first hint of how far it can be trusted.
    """

    mask: NDArray[np.bool_]
    score: float
    box: Corners

    @property
    def polygons(self) -> list[Polygon]:
        """The outer contours, largest first, as corners ``(x, y)`` in pixels."""
        return polygons(self.mask)


class Labeler:
    """A trained model with the preprocessing it was trained with. Make one with :func:`mal.load`."""

    def __init__(self, runtime: MalRuntime, predictor: Predictor) -> None:
        self._runtime, self._predictor = runtime, predictor

    @property
    def spec(self) -> ExperimentSpec:
        """The spec the model was trained with."""
        return self._runtime.spec

    @property
    def network(self) -> nn.Module:
        """The plain network, in evaluation mode. Raises: ValueError for an exported model, which has none."""
        return self._predictor.module

    def __repr__(self) -> str:
        what = f"{self.spec.model.arch}, crops of {self.spec.dataset.crop_size}"
        return f"<Labeler: {what}, {self._predictor.runtime} on {self._predictor.device}>"

    def label(self, image: Picture, boxes: Sequence[Corners], *, batch_size: int | None = None) -> list[LabelledBox]:
        """Masks for the boxes ``(x0, y0, x1, y1)`` of one picture (a path, PIL image or RGB array), in their order.

        ``batch_size``: boxes that the network sees at once; None: as many as are fastest where it runs.

        Raises: DatasetError for a picture that cannot be read, or a box without area in it; MetricError when the
            network gives no numbers.
        """
        return self.label_many([(image, boxes)], batch_size=batch_size)[0]

    def label_many(
        self, images: Iterable[tuple[Picture, Sequence[Corners]]], *, batch_size: int | None = None
    ) -> list[list[LabelledBox]]:
        """:meth:`label` of many pictures, each with its boxes."""
        size = self._fastest_batch() if batch_size is None else batch_size
        return [self._label(np.asarray(as_rgb(image)), boxes, size) for image, boxes in images]

    def _fastest_batch(self) -> int:
        on_cpu = torch.device(self._predictor.device).type == "cpu"
        fitting = _PIXELS_OF_A_CACHE // self._runtime.crop_size**2 if on_cpu else _LARGEST_BATCH
        return min(max(1, fitting), _LARGEST_BATCH)

    def _label(self, pixels: NDArray[np.uint8], boxes: Sequence[Corners], batch_size: int) -> list[LabelledBox]:
        height, width = pixels.shape[:2]
        given = [_box(place, corners, width, height) for place, corners in enumerate(boxes)]
        found: list[LabelledBox] = []
        for start in range(0, len(given), batch_size):
            part = given[start : start + batch_size]
            probs = self._predictor.predict(self._batch(pixels, part))["prob"].float().cpu()
            for box, prob in zip(part, probs, strict=True):
                mask = self._runtime.label_decoding.mask(prob[0], box, width=width, height=height)
                found.append(_labelled(mask, box))
        return found

    def _batch(self, pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        runtime, (height, width) = self._runtime, pixels.shape[:2]
        images, masks = [], []
        for box in boxes:
            crop = runtime.decoding.crop(box)
            images.append(IMAGENET(stretched(crop.pixels(pixels), runtime.crop_size)))
            mask = crop.box_mask(box.corners, width, height, wrapped=False, size=runtime.crop_size)
            masks.append(torch.from_numpy(mask.astype(np.float32))[None])
        batch = {
            "image": torch.stack(images),
            "boxmask": torch.stack(masks),
            "area": torch.tensor([box.area for box in boxes], dtype=torch.float32),
        }
        return {name: value.to(self._predictor.device) for name, value in batch.items()}


def _box(place: int, corners: Corners, width: int, height: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(corner) for corner in corners)
    except (TypeError, ValueError):
        found = f"{one_line(corners, 60)} is not four numbers"
        raise DatasetError(f"boxes[{place}]", found, "give corners x0, y0, x1, y1 in pixels") from None
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not all(map(np.isfinite, inside)) or inside[2] <= inside[0] or inside[3] <= inside[1]:
        found = f"{tuple(corners)} has no area in a picture of {width} x {height}"
        raise DatasetError(f"boxes[{place}]", found, "give corners x0, y0, x1, y1 in pixels")
    return Box(place, place, 0, 0, inside)


def _labelled(mask: PlacedMask, box: Box) -> LabelledBox:
    return LabelledBox(mask.full(), box_fit(box, mask.bounds()), box.corners)


def load(path: str | Path, *, spec: str | Path | None = None, device: Where = None, compile: bool = False) -> Labeler:
    """Load a trained labeller.

    ``path``: a run's results folder, a checkpoint (this project's or TAO's), or an exported model. ``spec``:
    the training's YAML; only needed for TAO checkpoints that have no ``experiment.yaml`` beside them. ``device``: where
    torch runs it, a GPU when there is one. ``compile``: a checkpoint's network for this machine, at its first use: it
    takes minutes once, and seconds at later starts.

    Raises: CheckpointError when there is no such model, it is damaged or unsafe, or what it is cannot be told.
    """
    found = model_file(path, MAL.prefix)
    if runtime_of(found).name != "torch":
        spec_of_file, _ = spec_of_export(ExperimentSpec, found, (MAL.name,), _tree_of, "export it with `mal export`")
        runtime = MAL.runtime(spec_of_file)
        return Labeler(runtime, open_predictor(found, runtime))
    checkpoint = checkpoint_of(found)
    if not is_mal(checkpoint.state_dict) and ModelCard.beside(found).task != MAL.name:  # of a quantized one
        raise foreign(checkpoint, "MAL", "give what `mal train` wrote")
    tree = stored_tree(MAL, checkpoint, spec)
    tree["inference"] = {**(tree.get("inference") or {}), "quality": False}
    runtime = MAL.runtime(compose(ExperimentSpec, Source(tree)).spec)
    predictor = ready(predictor_of(checkpoint, runtime), device, compile)
    return Labeler(runtime, predictor)


def run(action: str, spec: str | Path | Mapping[str, Any], *overrides: str) -> Result:
    """Run an action (``train``, ``evaluate``, ``inference``, ``export``) as its command does.

    ``spec``: a YAML file, or its content; ``overrides`` in Hydra's grammar: ``train.num_epochs=3``.

    Raises: UserError naming every problem of the spec and its files; whatever else the action raises.
    """
    return perform((MAL,), action, spec, overrides)


def _tree_of(card: ModelCard) -> dict[str, Any]:
    margin = card.details["test_margin_rate"]
    return {
        "model": {"arch": card.backbone},
        "dataset": {"crop_size": card.details["crop_size"]},
        "train": {"test_margin_rate": [margin, margin], "mask_thres": card.details["mask_thres"]},
    }
