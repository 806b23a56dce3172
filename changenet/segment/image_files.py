"""The files of one image: mask, probabilities, GeoTIFF, polygons, TAO's pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from changenet.segment.counts import IGNORED
from changenet.segment.files import Split
from changenet.segment.image_results import ImageResult
from changenet.segment.maps import polygons, write_geotiff, write_polygons
from changenet.segment.masks import (
    colour_mask,
    output_names,
    palette,
    strip,
    write_mask,
    write_picture,
    write_probability,
)
from changenet.segment.metrics import confusion
from changenet.segment.objects import match_objects
from changenet.segment.rasters import is_raster
from changenet.segment.reading import Pixels, SceneReader
from changenet.segment.report import Views
from fiducial.data.images import open_image

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["ImageFiles", "ImageRecord", "Predicted"]

MASKS, PROBABILITIES, POLYGONS = "masks", "probabilities", "polygons"
STRIPS = "combined_visualisation"
"""TAO's name of the folder of picture strips."""
_LARGEST_PICTURE = 1024


@dataclass(frozen=True)
class Predicted:
    """The result for one image: class numbers uint8 ``(H, W)``; probabilities float32 ``(K, H, W)`` where kept; the
    true class numbers uint8 ``(H, W)`` where known; where both images have data, bool ``(H, W)``, None where that
    is not known."""

    index: int
    mask: Pixels
    prob: NDArray[np.float32] | None
    label: Pixels | None
    valid: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class ImageRecord:
    """What is remembered of an image once its files are written."""

    index: int
    changed_pixels: int
    pixels: int
    result: ImageResult | None
    """None in inference."""


class ImageFiles:
    """Writes the files of each image as soon as it is predicted, and measures it where its truth is known.

    ``show``: whether the image at a place of the list also gets TAO's pictures. ``facts`` are for the report.
    """

    def __init__(
        self,
        folder: Path,
        data: SegmentDataset,
        split: Split,
        reader: SceneReader,
        *,
        show: Callable[[int], bool],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.data, self.split, self.reader, self.show = folder, data, split, reader, show
        self.facts = dict(facts or {})
        self.names = output_names(split.names)
        self.colours = palette(data.num_classes, color_map=data.color_map, data_name=data.data_name)

    def __call__(self, image: Predicted) -> ImageRecord:
        pair, outputs = self.split.pairs[image.index], self.data.outputs
        mask = image.mask
        if is_raster(pair.before):
            valid = self.reader.valid(pair, mask.shape) if image.valid is None else image.valid
            if valid is not None:
                mask = np.where(valid, mask, np.uint8(IGNORED))
        write_mask(self.mask_path(image.index), mask, self.colours)
        if image.prob is not None:
            write_probability(self.folder / PROBABILITIES / self.names[image.index], image.prob)
        self._write_map(image.index, mask, image.prob)
        if self.show(image.index):
            self._write_pictures(image)
        result = None
        if image.label is not None:
            objects = match_objects(
                image.mask > 0,
                (image.label > 0) & (image.label != IGNORED),
                ignored_HW=image.label == IGNORED,
                min_area=outputs.min_object_area,
            )
            mask_1HW, label_1HW = (torch.from_numpy(part)[None] for part in (image.mask, image.label))
            # a copy: small tensors that stay, among large ones that come and go, would leave memory in pieces
            matrix_KK = confusion(mask_1HW, label_1HW, self.data.num_classes)[0].numpy().copy()
            result = ImageResult(pair.name, matrix_KK, objects)
        changed = int(((mask > 0) & (mask != IGNORED)).sum())
        return ImageRecord(image.index, changed, int((mask != IGNORED).sum()), result)

    def where(self, index: int) -> str:
        """Where an image is listed, and its file, for messages."""
        pair = self.split.pairs[index]
        return f"{self.split.where(pair)}: {pair.before}"

    def mask_path(self, index: int) -> Path:
        """Where the mask of an image is."""
        name = self.names[index]
        return self.folder / MASKS / name.with_name(f"{name.name}.png")

    def views(self, index: int) -> Views:
        """The images of a pair at the size of its mask, and both masks, from their files."""
        with open_image(self.mask_path(index)) as image:
            mask = np.asarray(image)
        scene = self.reader.scene(self.split.pairs[index])
        height, width = mask.shape
        before, after = (_fitted(part, (width, height)) for part in (scene.before, scene.after))
        label = scene.label if scene.label is not None else np.full(mask.shape, IGNORED, dtype=np.uint8)
        return Views(before, after, mask, _fitted(label, (width, height)))

    def _write_map(self, index: int, mask: Pixels, prob: NDArray[np.float32] | None) -> None:
        """Mask and probability as GeoTIFF, and polygons, where the image says where it lies and has the mask's size."""
        path = self.split.pairs[index].before
        if not is_raster(path):
            return
        info = self.reader.info(path)
        if info.frame is None or (info.height, info.width) != mask.shape:
            return
        name = self.names[index]
        target = self.folder / MASKS / name.with_name(f"{name.name}.tif")
        write_geotiff(target, mask, info.frame, colours=self.colours, nodata=IGNORED)
        if prob is not None:
            changed = np.where(mask == IGNORED, np.float32(np.nan), 1 - prob[0])
            target = self.folder / PROBABILITIES / name.with_name(f"{name.name}.tif")
            write_geotiff(target, changed, info.frame, nodata=np.nan)
        kind = self.data.outputs.polygons
        if kind != "none":
            found = polygons(mask, info.frame, min_area=self.data.outputs.min_object_area, wgs84=kind == "wgs84")
            write_polygons(self.folder / POLYGONS / name.with_name(f"{name.name}.geojson"), found)

    def _write_pictures(self, image: Predicted) -> None:
        """TAO's two JPEGs: the coloured mask, and the strip of both images, the mask and, where known, the truth."""
        scene = self.reader.scene(self.split.pairs[image.index])
        masks = [colour_mask(mask, self.colours) for mask in (image.mask, image.label) if mask is not None]
        height, width = image.mask.shape
        scale = min(1.0, _LARGEST_PICTURE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pictures = [_fitted(part, size) for part in (scene.before, scene.after)]
        pictures += [_fitted(mask, size, Image.Resampling.NEAREST) for mask in masks]
        name = self.names[image.index]
        suffix = Path(self.split.pairs[image.index].name).suffix
        file_name = name.with_name(f"{name.name.removesuffix(suffix)}{suffix}.jpg")
        write_picture(self.folder / file_name, pictures[2])
        write_picture(self.folder / STRIPS / file_name, strip(pictures))


def _fitted(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling | None = None) -> Pixels:
    """``pixels`` at ``size`` = (width, height); masks ``(H, W)`` always by their nearest pixel."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if resample is None:
        resample = Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, resample))
