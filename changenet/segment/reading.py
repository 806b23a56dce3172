"""Reading the images and the mask of a pair. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from changenet.segment.counts import IGNORED
from changenet.segment.encoding import LabelEncoding, Mask, Pixels, mask_of, mask_values
from changenet.segment.files import ScenePair
from changenet.segment.frames import RasterInfo
from changenet.segment.rasters import (
    Percentiles,
    Scaling,
    check_raster,
    is_raster,
    read_info,
    read_numbers,
    read_raster,
    read_rows,
    resolve_scaling,
    wants_rasterio,
)
from fiducial.data.images import ImageCache, check_whole, has_16_bits, image_facts, read_image
from fiducial.data.kept import stamp_of
from fiducial.data.lru import ByteLRU
from fiducial.data.picture_cache import PictureCache

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["LabelEncoding", "Mask", "Part", "Pixels", "Scene", "SceneReader", "mask_values", "resized", "scene_of"]

_BICUBIC, _NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
MASK_AS = f"classes 1, Pillow {PIL.__version__}"
"""What the class numbers of a mask are kept as: it changes when others are made of the same file."""


@dataclass(frozen=True)
class Scene:
    """A pair, decoded: uint8 RGB ``(H, W, 3)`` twice; class numbers uint8 ``(H, W)``, None where masks are not read.

    Pixels without data in either image are 255 in the mask, and False in ``valid``, bool ``(H, W)``: None where files
    cannot say that there is none.
    """

    before: Pixels
    after: Pixels
    label: Pixels | None
    valid: NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        """Memory that the pixels take."""
        return sum(part.nbytes for part in (self.before, self.after, self.label, self.valid) if part is not None)


Part = tuple[Pixels, NDArray[np.bool_] | None]
"""Pixels of an image, uint8 RGB ``(H, W, 3)``, and where it has data, bool ``(H, W)``; None where it cannot say."""
_BYTES_OF_A_PAIR = 3 + 3 + 1 + 1


def scene_of(before: Part, after: Part, label: Pixels | None) -> Scene:
    """The scene of two images, or of the same part of them."""
    for _, known in (before, after):
        if known is not None and label is not None and known.shape == label.shape:
            label = np.where(known, label, np.uint8(IGNORED))
    return Scene(before[0], after[0], label, _both([before[1], after[1]]))


def _both(known: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    masks = [mask for mask in known if mask is not None]
    return np.logical_and.reduce(masks) if masks and masks[0].shape == masks[-1].shape else None


def resized(scene: Scene, side: int) -> Scene:
    """All parts at ``side`` × ``side`` pixels: images bicubic with antialiasing, the mask by its nearest pixel."""
    label = None if scene.label is None else _resize(scene.label, side, _NEAREST)
    return Scene(_resize(scene.before, side, _BICUBIC), _resize(scene.after, side, _BICUBIC), label)


def _resize(pixels: Pixels, side: int, resample: Image.Resampling) -> Pixels:
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), resample))


class SceneReader:
    """Reads pairs; keeps the latest ones, up to ``cache_mb`` per process, where windows are cut from them.

    The latest is kept even when it is larger; with ``cache_mb`` 0 none is. Threads may share a reader. ``root`` is the
    folder of the data set: what a VRT in it may name. ``shared`` keeps plain pictures and masks for all processes, not
    rasters: files beside them count, too.
    """

    def __init__(
        self,
        encoding: LabelEncoding,
        *,
        scaling: Scaling | None = None,
        bands: Sequence[int] | None = None,
        cache_mb: int = 0,
        shared: PictureCache | None = None,
        root: Path | None = None,
    ) -> None:
        self.encoding, self.scaling, self.bands, self.root = encoding, scaling, bands, root
        self._pictures = ImageCache(0, shared)
        self._cache: ByteLRU[tuple[object, ...], Scene] = ByteLRU(cache_mb * 2**20, keep_latest=True)

    @classmethod
    def of(
        cls,
        data: SegmentDataset,
        *,
        cached: bool = True,
        shared: PictureCache | None = None,
        root: Path | None = None,
    ) -> SceneReader:
        """The reader that a spec asks for; without a cache for those who need each pair once."""
        raster = data.raster
        scaling: Scaling | None = None
        if raster.percentiles is not None:
            scaling = Percentiles(raster.percentiles[0], raster.percentiles[1])
        elif raster.scaling is not None:
            scaling = (raster.scaling[0], raster.scaling[1])
        cache_mb = data.windows.cache_mb if data.windows.enable and cached else 0
        encoding, bands = LabelEncoding.of(data), raster.bands
        return cls(encoding, scaling=scaling, bands=bands, cache_mb=cache_mb, shared=shared, root=root)

    def scene(self, pair: ScenePair) -> Scene:
        """The pair as it is in its files, with a mask if ``pair.label`` is set. Do not change the arrays.

        Raises: DatasetError naming the file when one cannot be read or means nothing.
        """
        key = (pair, *map(stamp_of, pair.files)) if self._cache.max_bytes else ()  # a changed file is read anew
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        before, after = self.picture(pair.before), self.picture(pair.after)
        scene = scene_of(before, after, self.label(pair.label) if pair.label else None)
        self._cache.put(key, scene, scene.nbytes)
        return scene

    def resized(self, pair: ScenePair, side: int) -> Scene:
        """:meth:`scene`, and :func:`resized`. Raises: DatasetError as :meth:`scene`."""
        if any(is_raster(path) for path in pair.files) or self.scaling is not None or self._pictures.shared is None:
            return resized(self.scene(pair), side)
        before, after = (self._pictures.rgb(path, (side, side), _BICUBIC) for path in (pair.before, pair.after))
        return Scene(before, after, self.label(pair.label, side) if pair.label else None)

    def label(self, path: Path, side: int | None = None) -> Pixels:
        """The class numbers of a mask file, 255 where it has no data; resized to ``side`` where it is given."""

        def from_file() -> Pixels:
            label = self.encoding.classes(self.mask(path), where=str(path))
            return label if side is None else _resize(label, side, _NEAREST)

        if self._pictures.shared is None or is_raster(path):
            return from_file()
        return self._pictures.shared.kept(path, f"{MASK_AS}, {self.encoding}, {side}", from_file)

    def mask(self, path: Path) -> Mask:
        """The numbers of a mask file. Raises: DatasetError when they are no class numbers at all."""
        if wants_rasterio(path):
            return mask_of(read_numbers(path, root=self.root), where=str(path))
        values = mask_values(read_image(path), where=str(path))
        return Mask(values, np.ones(values.shape, dtype=bool))

    def valid(self, pair: ScenePair, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Where both images of ``size`` have data; None where they have another, or cannot say that there is none."""
        if any(self.size(path) != size for path in (pair.before, pair.after)):
            return None
        return _both([self.picture(path)[1] for path in (pair.before, pair.after)])

    def keeps(self, height: int, width: int) -> bool:
        """Whether pairs of this size find room in the cache, with their mask and where they have data."""
        return height * width * _BYTES_OF_A_PAIR <= self._cache.max_bytes

    def parts(self, path: Path) -> Iterator[Part]:
        """:meth:`picture` from top to bottom, in parts of whole rows; see :func:`changenet.segment.rasters.read_rows`.

        No block of a raster is decoded twice, and one part at a time is in memory.
        """
        if not is_raster(path):
            yield self.picture(path)
            return
        scaling = resolve_scaling(path, self.scaling, self.bands, root=self.root)
        for raster in read_rows(path, scaling=scaling, bands=self.bands, root=self.root):
            yield raster.rgb, raster.valid

    def picture(self, path: Path) -> Part:
        """One image as uint8 RGB ``(H, W, 3)``, and where it has data, ``(H, W)``; None where its file cannot say."""
        if not is_raster(path) and self.scaling is None:
            return self._pictures.rgb(path), None
        scaling = resolve_scaling(path, self.scaling, self.bands, root=self.root)
        raster = read_raster(path, scaling=scaling, bands=self.bands, root=self.root)
        return raster.rgb, raster.valid

    def info(self, path: Path) -> RasterInfo:
        """What the header of an image or a mask says. Raises: DatasetError when it cannot be read."""
        return read_info(path, root=self.root)

    def size(self, path: Path) -> tuple[int, int]:
        """Height and width from the header of an image or a mask. Raises: DatasetError when it cannot be read."""
        info = self.info(path)
        return info.height, info.width

    def check(self, path: Path, *, decode: bool) -> int | None:
        """Raises what :meth:`picture` would raise, as far as it shows without decoding; ``decode`` all of it, too.

        Returns the highest value of a 16-bit picture whose scaling is not stated, None for others.
        """
        if wants_rasterio(path):
            check_raster(path, self.scaling, self.bands, decode=decode, root=self.root)
        elif self.scaling is not None and decode:
            self.picture(path)
        elif self.scaling is None and (decode or has_16_bits(path)):
            return image_facts(path).brightest
        else:
            check_whole(path)
        return None
