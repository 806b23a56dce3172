"""The segment task as a library: load a trained model, find what changed between two pictures.

>>> detector = changenet.load("results/train")
>>> change = detector.detect("2019.tif", "2024.tif")
>>> change.mask, change.changed
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from changenet.config import ExperimentSpec
from changenet.difference import resize
from changenet.segment.alignment import check_alignment
from changenet.segment.counts import IGNORED
from changenet.segment.frames import GeoFrame
from changenet.segment.maps import write_geotiff
from changenet.segment.masks import palette, write_mask
from changenet.segment.model import FINAL
from changenet.segment.rasters import TIFF, read_info
from changenet.segment.reading import Pixels, Scene, SceneReader, resized
from changenet.segment.runtime import SegmentRuntime
from changenet.segment.sliding import window_of
from changenet.segment.soundness import is_unsound, unsound
from changenet.segment.tiles import Window, blend, windows
from fiducial.data.pictures import Picture, as_rgb
from fiducial.data.prefetch import Prefetched
from fiducial.deploy.card import ModelCard
from fiducial.errors import DatasetError
from fiducial.prediction import Batch, Predictor
from fiducial.run.console import LOGGER

__all__ = ["Change", "ChangeDetector"]


@dataclass(frozen=True)
class Change:
    """What changed between two pictures of ``(H, W)`` pixels."""

    mask: Pixels
    """Class numbers, uint8 ``(H, W)``: 0 is no change; 255 where a raster has no data."""
    probability: NDArray[np.float32]
    """Of each class, ``(K, H, W)`` in 0..1; means nothing where the mask is 255."""
    frame: GeoFrame | None = None
    """Where on earth the earlier picture lies, if it says so."""
    colours: Sequence[tuple[int, int, int]] = field(default=(), repr=False)
    """Of each class, in files."""

    @property
    def changed(self) -> NDArray[np.float32]:
        """The probability of any change, ``(H, W)``."""
        unchanged: NDArray[np.float32] = self.probability[0]
        return 1 - unchanged

    def save(self, path: str | Path) -> None:
        """Write the mask: ``.png`` holds class numbers that are shown in colour, ``.tif`` a GeoTIFF (needs rasterio).

        Raises: ValueError for another suffix; MissingDependencyError.
        """
        path = Path(path)
        if path.suffix.lower() in TIFF:
            write_geotiff(path, self.mask, self.frame, colours=self.colours, nodata=IGNORED)
        elif path.suffix.lower() == ".png":
            write_mask(path, self.mask, self.colours)
        else:
            raise ValueError(f"masks are saved as .png or .tif, not as {path.name}")


class ChangeDetector:
    """A trained segment model with the preprocessing it was trained with. Make one with :func:`changenet.load`."""

    def __init__(self, runtime: SegmentRuntime, predictor: Predictor) -> None:
        self._runtime, self._predictor = runtime, predictor
        self._data = runtime.data
        self._reader = SceneReader.of(self._data)
        self._normalize = runtime.normalization_for(training=False)
        self._warned = self._data.windows.enable
        self.colours = palette(self._data.num_classes, color_map=self._data.color_map, data_name=self._data.data_name)
        """Colour of each class in saved masks."""

    @property
    def spec(self) -> ExperimentSpec:
        """The spec the model was trained with."""
        return self._runtime.spec

    @property
    def network(self) -> nn.Module:
        """The plain network, in evaluation mode. Raises: ValueError for an exported model, which has none."""
        return self._predictor.module

    def __repr__(self) -> str:
        data = self._data
        what = f"{self.spec.model.backbone.type}, {data.num_classes} classes, {data.img_size} pixels"
        return f"<ChangeDetector: {what}, {self._predictor.runtime} on {self._predictor.device}>"

    @staticmethod
    def spec_of(card: ModelCard) -> dict[str, Any]:
        """A spec's tree from what an exported model says of itself. Raises: KeyError when it says too little."""
        data = {key: card.details[key] for key in ("img_size", "num_classes", "multi_scale_infer")}
        data |= {key: card.details[key] for key in ("windows", "raster", "color_map", "data_name")}
        data["augmentation"] = {"mean": list(card.mean), "std": list(card.std)}
        return {
            "task": "segment",
            "model": {"backbone": {"type": card.backbone}},
            "dataset": {"segment": data},
        }

    def detect(self, before: Picture, after: Picture, *, tiled: bool = True, batch_size: int = 8) -> Change:
        """Compare two pictures of one size; the result has their size too.

        Pictures larger than the training's ``img_size`` are gone over in overlapping windows, ``batch_size`` at a time,
        whose probabilities are blended. With ``tiled=False`` they are resized to ``img_size``, and the result back, as
        training without ``dataset.segment.windows`` resizes them. Smaller ones are enlarged, or mirrored to the size of
        a window where the model was trained on windows.

        Raises: DatasetError when a picture cannot be read, or the two do not cover the same pixels; MetricError when
            outputs of the model are NaN or infinite.
        """
        frame = _common_frame(before, after)
        (before_pixels, valid), (after_pixels, also_valid) = self._read(before), self._read(after)
        size, after_size = before_pixels.shape[:2], after_pixels.shape[:2]
        if size != after_size:
            found = f"{size[0]} × {size[1]} and {after_size[0]} × {after_size[1]} pixels"
            raise DatasetError("pictures", found, "give two of one size")
        scene = Scene(before_pixels, after_pixels, None)
        where = f"{_name(before)} and {_name(after)}"
        if tiled and (self._data.windows.enable or max(size) > self._data.img_size):
            prob_KHW = self._in_windows(scene, batch_size, where)
        else:
            prob_KHW = self._resized(scene, where)
        mask = prob_KHW.argmax(0).astype(np.uint8)
        for known in (valid, also_valid):
            if known is not None:
                mask[~known] = IGNORED
        return Change(mask, prob_KHW, frame, self.colours)

    def _read(self, picture: Picture) -> tuple[Pixels, NDArray[np.bool_] | None]:
        if isinstance(picture, (str, Path)):
            return self._reader.picture(Path(picture))
        return np.asarray(as_rgb(picture)), None

    def _resized(self, scene: Scene, where: str) -> NDArray[np.float32]:
        size = scene.before.shape[:2]
        logit_1KSS = self._predict(self._batch([resized(scene, self._data.img_size)]), where)
        prob: NDArray[np.float32] = resize(logit_1KSS, size)[0].softmax(0).cpu().numpy()
        return prob

    def _in_windows(self, scene: Scene, batch_size: int, where: str) -> NDArray[np.float32]:
        (height, width), side = scene.before.shape[:2], self._data.img_size
        if not self._warned:
            LOGGER.warning(
                "a picture of %d × %d pixels is cut into windows of %d, but the model was trained on whole pictures "
                "resized to that; if those were larger, too, give tiled=False",
                height,
                width,
                side,
            )
            self._warned = True
        cover = windows(height, width, side, round(self._data.windows.overlap * side))

        def batches() -> Iterator[tuple[Sequence[Window], Batch]]:
            for start in range(0, len(cover), batch_size):
                some = cover[start : start + batch_size]
                yield some, self._batch([window_of(scene, window) for window in some])

        def parts() -> Iterator[tuple[Window, NDArray[np.float32]]]:
            with closing(Prefetched(batches)) as ahead:
                for some, batch in ahead:
                    yield from zip(some, self._predict(batch, where).softmax(1).cpu().numpy(), strict=True)

        return blend(parts(), self._data.num_classes, height, width)

    def _batch(self, scenes: Sequence[Scene]) -> Batch:
        return {
            "A": torch.stack([self._normalize(scene.before) for scene in scenes]),
            "B": torch.stack([self._normalize(scene.after) for scene in scenes]),
        }

    def _predict(self, batch: Batch, where: str) -> Tensor:
        moved = {name: part.to(self._predictor.device) for name, part in batch.items()}
        logit_BKSS = self._predictor.predict(moved)[FINAL].float()
        if is_unsound(logit_BKSS).any():
            raise unsound([where])
        return logit_BKSS


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else type(picture).__name__


def _common_frame(before: Picture, after: Picture) -> GeoFrame | None:
    """Where files say that they lie. Raises: DatasetError when they say that they do not lie on one another."""
    infos = [read_info(Path(picture)) for picture in (before, after) if isinstance(picture, (str, Path))]
    problems = list(check_alignment(infos)) if len(infos) == 2 else []
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise DatasetError.of(errors)
    for problem in problems:
        LOGGER.warning("%s", problem)
    return infos[0].frame if infos and isinstance(before, (str, Path)) else None
