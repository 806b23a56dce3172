"""From probabilities of crops to masks, numbers and files: the same for validation, ``evaluate`` and ``inference``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fiducial.errors import MetricError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Evaluator, Kpis, Outputs
from fiducial.run.ranks import gather
from mal.annotations import Annotations, Box, Selection
from mal.average_precision import average_precision
from mal.boundary import boundary_f
from mal.clustering import cluster_score, on_grid
from mal.crop import Crop, crop_around
from mal.decode import PlacedMask, place, threshold_of
from mal.metrics import ClassIou
from mal.model import LIMITS
from mal.outputs import write_evaluation, write_inference
from mal.quality import Judgement, box_fit, jittered, rle_iou
from mal.results import Labelled, Results

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["BoxEvaluator", "BoxFiles", "Decoding"]


@dataclass(frozen=True)
class Decoding:
    """How probabilities become masks: the crop's margin, thresholds by size, whether masks end at their boxes."""

    margin: float = 0.3
    thresholds: tuple[float, ...] = (0.1,)
    clip_to_box: bool = False

    def crop(self, box: Box) -> Crop:
        """What the network sees of a box."""
        return crop_around(box.corners, [self.margin] * 4)

    def mask(self, prob_SS: Tensor, box: Box, *, width: int, height: int) -> PlacedMask:
        """The mask of one box in its picture. Raises: MetricError when the network gave no numbers."""
        if not prob_SS.isfinite().all():
            raise MetricError(f"annotation {box.id}", "the model's output is not a number", "look at its training")
        threshold = threshold_of(self.thresholds, int(np.searchsorted(LIMITS, box.area)))
        placed = place(prob_SS, self.crop(box), width=width, height=height, threshold=threshold)
        return placed.within(box.corners) if self.clip_to_box else placed


@dataclass(frozen=True)
class BoxFiles:
    """Where the files of ``evaluate`` and ``inference`` go, and what they are made from."""

    folder: Path
    spec: ExperimentSpec
    images: Path


class BoxEvaluator(Evaluator[Results]):
    """Collects masks on every rank.

    ``measured``: compare them with the true ones. ``per_batch``: TAO's numbers by size, which depend on the batches.
    """

    on_host = frozenset({"place", "area"})

    def __init__(
        self,
        stage: Stage,
        annotations: Annotations,
        selection: Selection,
        decoding: Decoding | None = None,
        *,
        measured: bool,
        per_batch: bool = False,
        files: BoxFiles | None = None,
    ) -> None:
        self.stage, self.annotations, self.selection = stage, annotations, selection
        self.decoding = decoding or Decoding()
        self.measured, self.per_batch, self.files = measured, per_batch, files
        self._found: dict[int, Labelled] = {}
        self._judged: tuple[Results, Kpis] | None = None

    @property
    def boxes(self) -> Sequence[Box]:
        return self.selection.boxes

    def update(self, outputs: Outputs, batch: Batch, *, source: int = 0) -> None:
        """Take a batch of probabilities ``(B, 1, S, S)``; ``source`` 1 are the same boxes again, a little larger.

        Masks are made and measured on the CPU: a GPU is waited for once, where the outputs are fetched.
        """
        outputs = {name: output.detach().float().cpu() for name, output in outputs.items()}
        places = batch["place"].tolist()
        classes = tuple(sorted({self.boxes[number].category for number in places})) if self.per_batch else ()
        nothing = [None] * len(places)
        second, features = outputs.get("second", nothing), outputs.get("feature", nothing)
        for number, prob, other, feature in zip(places, outputs["prob"], second, features, strict=True):
            if source == 0:
                self._found[number] = self._labelled(number, prob[0], other, feature, classes)
            else:
                self._see_stability(number, prob[0])

    def finish(self) -> Results:
        parts = {number: found for rank in gather(self._found) for number, found in rank.items()}
        self._found = {}
        return Results(self.annotations, self.selection, tuple(parts[number] for number in sorted(parts)))

    def kpis(self, result: Results) -> Kpis:
        if self.files is None:
            return self._kpis(result)
        if self._judged is None or self._judged[0] is not result:  # files want them, too, and AP takes long
            self._judged = result, self._kpis(result)
        return dict(self._judged[1])

    def _kpis(self, result: Results) -> Kpis:
        if self.stage == "infer":
            return {**result.counts(), **(self._ious(result).kpis() if self.measured and result.measured else {})}
        if not result.measured:
            return {}
        kpis: Kpis = {**self._ious(result).kpis(), "object_IoU": float(np.mean([f.iou for f in result.measured]))}
        clusters = [found.cluster for found in result.measured if found.cluster is not None]
        if clusters:
            kpis["val_cluster_score"] = float(np.mean(clusters))
        if self.stage == "test":
            kpis["boundary_F"] = float(np.mean([found.boundary for found in result.measured]))
            if self.files is not None and self.files.spec.evaluate.compute_ap:
                kpis |= average_precision(result)
        return kpis

    def write(self, result: Results, facts: Mapping[str, Any]) -> tuple[Path, ...]:
        if self.files is None:
            return ()
        folder, spec, images = self.files.folder, self.files.spec, self.files.images
        kpis = self.kpis(result)
        if self.stage == "infer":
            return write_inference(folder, spec, images, result, kpis, facts)
        return write_evaluation(folder, images, result, kpis, self._ious(result).by_class(), facts)

    def _ious(self, result: Results) -> ClassIou:
        metric = ClassIou(len(self.annotations.class_names))
        for found in result.measured:
            box = self.boxes[found.place]
            sized_as = found.classes_of_batch if self.per_batch else None
            metric.add(box.category, found.iou or 0.0, box.area, sized_as=sized_as)
        return metric

    def _labelled(
        self, number: int, prob: Tensor, second: Tensor | None, feature: Tensor | None, classes: tuple[int, ...]
    ) -> Labelled:
        box = self.boxes[number]
        mask = self._mask(prob, box)
        found = Labelled(
            number, mask.rle(), mask.area, mask.bounds(), _confidence(prob, mask), classes_of_batch=classes
        )
        if self.measured and self.annotations.has_mask(box):
            true = self.annotations.mask(box)
            found = replace(found, iou=mask.iou(true))
            if feature is not None:
                inside = on_grid(self.decoding.crop(box).pixels(true), *feature.shape[1:])
                found = replace(found, cluster=cluster_score(feature, inside))
            if self.stage == "test":
                x0, y0, x1, y1 = box.corners
                diagonal = float(np.hypot(x1 - x0, y1 - y0))
                found = replace(found, boundary=boundary_f(mask.mask, mask.window_of(true), diagonal=diagonal))
        if self.stage == "infer":
            agreement = None if second is None else rle_iou(found.rle, self._mask(second[0], box).rle())
            found = replace(found, quality=Judgement(box_fit(box, found.bounds), agreement))
        return found

    def _see_stability(self, number: int, prob: Tensor) -> None:
        found, box = self._found[number], self.boxes[number]
        if found.quality is not None:
            larger = jittered(box, self.annotations.pictures[box.picture])
            stability = rle_iou(found.rle, self._mask(prob, larger).rle())
            self._found[number] = replace(found, quality=replace(found.quality, stability=stability))

    def _mask(self, prob: Tensor, box: Box) -> PlacedMask:
        picture = self.annotations.pictures[box.picture]
        return self.decoding.mask(prob, box, width=picture.width, height=picture.height)


def _confidence(prob: Tensor, mask: PlacedMask) -> float:
    """The mean probability of what became mask, 0 where nothing did."""
    return float(prob[prob > 0.5].mean()) if mask.area and bool((prob > 0.5).any()) else 0.0
