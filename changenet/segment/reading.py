"""Reading the images and the mask of a pair, and telling what a mask means before it is trusted. No torch.

Masks hold 0 and 255 (``norm``: unchanged and changed) or class numbers, 255 for pixels that do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from changenet.segment.counts import IGNORED
from changenet.segment.files import ScenePair
from changenet.segment.rasters import (
    RASTER_FIX,
    TIFF,
    Percentiles,
    Scaling,
    read_info,
    read_raster,
    resolve_scaling,
)
from fiducial.data.images import check_whole, is_deep, read_image, read_rgb, to_rgb
from fiducial.data.lru import ByteLRU
from fiducial.errors import DatasetError

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["LabelEncoding", "Pixels", "Scene", "SceneReader", "image_size", "mask_values"]

Pixels = NDArray[np.uint8]

CHANGED = 255
"""What ``norm`` masks say of a changed pixel."""
_ALL_UNCHANGED = "with label_transform norm all of it would be unchanged"
MAX_CLASSES = 64
"""Numbers up to this are taken for class numbers where a mask holds no 255."""


@dataclass(frozen=True)
class LabelEncoding:
    """How the values of a mask file become class numbers."""

    norm: bool
    num_classes: int

    @classmethod
    def of(cls, data: SegmentDataset) -> LabelEncoding:
        """The encoding that a spec states."""
        return cls(data.label_transform == "norm", data.num_classes)

    def problem(self, counts_256: NDArray[np.int64]) -> tuple[str, str] | None:
        """What is wrong with a mask of so many pixels per value, and the fix; None when it can be used.

        TAO's ``norm`` takes every value but 255 for no change, so that a 0/1 mask has no change anywhere.
        """
        values = np.flatnonzero(counts_256).tolist()
        if self.norm:
            if not 0 < max(values, default=0) < MAX_CLASSES:
                return None
            found = f"values {_some(values)} and no 255: {_ALL_UNCHANGED}"
            fix = "set dataset.segment.label_transform: None (the mask holds class numbers)"
            return found, fix + ("" if max(values) < self.num_classes else " and num_classes above all of them")
        wrong = [value for value in values if value >= self.num_classes and value != IGNORED]
        if wrong:
            fix = f"raise dataset.segment.num_classes (now {self.num_classes}), or mend the mask (255 is ignored)"
            return f"class numbers {_some(wrong)}", fix
        return None

    def problem_of_all(self, counts_256: NDArray[np.int64]) -> tuple[str, str] | None:
        """The same for all masks together, whose single files may look right."""
        if self.norm and self.num_between(counts_256) and not counts_256[CHANGED]:
            found = f"values up to {np.flatnonzero(counts_256).max()} and no 255 in any mask: {_ALL_UNCHANGED}"
            return found, "write masks of 0 and 255 in a lossless format"
        if not self.norm and set(np.flatnonzero(counts_256).tolist()) == {0, IGNORED}:
            found = "values 0 and 255 alone: with label_transform None every 255 is ignored, and nothing is changed"
            return found, "set dataset.segment.label_transform: norm"
        return None

    def num_between(self, counts_256: NDArray[np.int64]) -> int:
        """Pixels that are neither 0 nor 255 in a ``norm`` mask: unchanged to TAO and here."""
        return int(counts_256[1:CHANGED].sum()) if self.norm else 0

    def classes(self, values: Pixels, *, where: str) -> Pixels:
        """Class numbers ``(H, W)`` of a mask's values. Raises: DatasetError naming ``where`` when they mean nothing."""
        wrong = self.problem(np.bincount(values.ravel(), minlength=256))
        if wrong:
            raise DatasetError(where, *wrong)
        return (values == CHANGED).astype(np.uint8) if self.norm else values


def mask_values(image: Image.Image, *, where: str) -> Pixels:
    """The values of a mask file as they are stored, uint8 ``(H, W)``: grey levels, palette numbers, bits.

    Raises: DatasetError for a colour picture (unless it is grey), or values above 255.
    """
    values = np.asarray(image)
    if values.ndim == 3:
        colour = values[..., : len(image.getbands()) - ("A" in image.getbands())]
        if not (colour == colour[..., :1]).all():
            found = f"a colour picture (mode {image.mode})"
            raise DatasetError(where, found, "write one channel: 0 and 255, or class numbers")
        values = colour[..., 0]
    if values.dtype != np.uint8 and values.size and (values.max() > 255 or values.min() < 0):
        found = f"values {values.min():g} .. {values.max():g}"
        raise DatasetError(where, found, "write one channel of 8 bits: 0 and 255, or class numbers")
    return values.astype(np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header. Raises: DatasetError when it cannot be read."""
    if path.suffix.lower() not in TIFF:
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except OSError:
            pass  # reading it whole says what is wrong
    info = read_info(path)
    return info.height, info.width


def _some(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")


@dataclass(frozen=True)
class Scene:
    """A pair, decoded: uint8 RGB ``(H, W, 3)`` twice; class numbers uint8 ``(H, W)``, None where masks are not read.

    Pixels without data in either image are 255 in the mask.
    """

    before: Pixels
    after: Pixels
    label: Pixels | None

    @property
    def nbytes(self) -> int:
        """Memory that the pixels take."""
        return sum(part.nbytes for part in (self.before, self.after, self.label) if part is not None)


class SceneReader:
    """Reads pairs; keeps the latest ones, up to ``cache_mb`` per process, where windows are cut from them.

    The latest is kept even when it is larger; with ``cache_mb`` 0 none is. Threads may share a reader.
    """

    def __init__(
        self,
        encoding: LabelEncoding,
        *,
        scaling: Scaling | None = None,
        bands: Sequence[int] | None = None,
        cache_mb: int = 0,
    ) -> None:
        self.encoding, self.scaling, self.bands = encoding, scaling, bands
        self._cache: ByteLRU[ScenePair, Scene] = ByteLRU(cache_mb * 2**20, keep_latest=True)

    @classmethod
    def of(cls, data: SegmentDataset, *, cached: bool = True) -> SceneReader:
        """The reader that a spec asks for; without a cache for those who need each pair once."""
        raster = data.raster
        scaling: Scaling | None = None
        if raster.percentiles is not None:
            scaling = Percentiles(raster.percentiles[0], raster.percentiles[1])
        elif raster.scaling is not None:
            scaling = (raster.scaling[0], raster.scaling[1])
        cache_mb = data.windows.cache_mb if data.windows.enable and cached else 0
        return cls(LabelEncoding.of(data), scaling=scaling, bands=raster.bands, cache_mb=cache_mb)

    def scene(self, pair: ScenePair) -> Scene:
        """The pair as it is in its files, with a mask if ``pair.label`` is set. Do not change the arrays.

        Raises: DatasetError naming the file when one cannot be read or means nothing.
        """
        kept = self._cache.get(pair)
        if kept is not None:
            return kept
        before, valid = self.picture(pair.before)
        after, also_valid = self.picture(pair.after)
        label = self.label(pair.label) if pair.label else None
        for known in (valid, also_valid):
            if known is not None and label is not None and known.shape == label.shape:
                label = np.where(known, label, np.uint8(IGNORED))
        scene = Scene(before, after, label)
        self._cache.put(pair, scene, scene.nbytes)
        return scene

    def label(self, path: Path) -> Pixels:
        """The class numbers of a mask file."""
        return self.encoding.classes(mask_values(read_image(path), where=str(path)), where=str(path))

    def valid(self, pair: ScenePair) -> NDArray[np.bool_] | None:
        """Where both images have data; None where files cannot say that there is none."""
        masks = [mask for path in (pair.before, pair.after) if (mask := self.picture(path)[1]) is not None]
        return np.logical_and.reduce(masks) if masks and masks[0].shape == masks[-1].shape else None

    def picture(self, path: Path) -> tuple[Pixels, NDArray[np.bool_] | None]:
        """One image as uint8 RGB ``(H, W, 3)``, and where it has data, ``(H, W)``; None where its file cannot say."""
        if path.suffix.lower() not in TIFF and self.scaling is None:
            return np.asarray(read_rgb(path)), None
        raster = read_raster(path, scaling=resolve_scaling(path, self.scaling, self.bands), bands=self.bands)
        return raster.rgb, raster.valid

    def check(self, path: Path, *, decode: bool) -> int | None:
        """Raises what :meth:`picture` would raise, as far as it shows without decoding; ``decode`` all but rasters.

        Returns the highest value of a 16-bit picture, None for others.
        """
        if path.suffix.lower() in TIFF or self.scaling is not None:
            info = read_info(path)
            if self.scaling is None and info.dtype != "uint8":
                raise DatasetError(str(path), f"{info.dtype} pixels", RASTER_FIX)
        elif decode or is_deep(path):
            image = read_image(path)
            to_rgb(image, where=str(path))
            return int(np.asarray(image).max(initial=0)) if is_deep(path) else None
        else:
            check_whole(path)
        return None
