"""Reading rasters, or windows of them, as 8-bit RGB with a stated scaling.

Needs rasterio (extra ``geo``) for all but plain 8-bit pictures, which :mod:`fiducial.data.images` reads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode, UnidentifiedImageError

from changenet.segment.geo import GeoFrame, RasterInfo, load_rasterio, quiet
from changenet.segment.tiles import Window
from fiducial.data.images import read_image
from fiducial.errors import DatasetError, MissingDependencyError

__all__ = ["RASTER_FIX", "TIFF", "Percentiles", "Raster", "Scaling", "read_info", "read_raster", "resolve_scaling"]

log = logging.getLogger("fiducial")

TIFF = (".tif", ".tiff")
RASTER_FIX = "set dataset.segment.raster.percentiles, or .scaling"
"""What to do about pixels of more than 8 bits."""
_GEO_TAGS = (33550, 33922, 34264, 34735)  # GeoTIFF: pixel scale, tie points, transformation, keys
_BITS_PER_SAMPLE = 258
_SAMPLE_SIDE = 2048  # percentiles come from at most this many pixels squared


@dataclass(frozen=True)
class Percentiles:
    """The values of a raster that ``low`` and ``high`` percent of its valid pixels lie below."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {self.low}, {self.high}")


Scaling = tuple[float, float] | Percentiles
"""Which values become 0 and 255: the two values, or percentiles of each raster."""


@dataclass(frozen=True)
class Raster:
    """``rgb`` uint8 ``(H, W, 3)``; ``valid`` bool ``(H, W)``, False where the file has no data."""

    rgb: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    frame: GeoFrame | None


def read_info(path: Path) -> RasterInfo:
    """The header only. Raises: DatasetError when it cannot be read; MissingDependencyError, see :func:`read_raster`."""
    if not _wants_rasterio(path):
        return _plain_info(path)
    with _opened(path) as file:
        return RasterInfo(path, file.height, file.width, file.count, file.dtypes[0], _frame(file))


def read_raster(
    path: Path,
    *,
    scaling: tuple[float, float] | None = None,
    bands: Sequence[int] | None = None,
    window: Window | None = None,
) -> Raster:
    """A raster, or a window of it, as 8-bit RGB.

    ``scaling`` (low, high): values become ``(value - low) / (high - low) · 255``, rounded and cut at 0 and 255. Without
    it the pixels must be 8-bit and stay as they are: what deeper pixels mean is never guessed. Percentiles are made
    values of by :func:`resolve_scaling`. ``bands``: one or three band numbers from 1 (red, green, blue); None takes the
    bands that the file marks as such, else its first three, or its only one. ``window`` may reach over the right and
    lower border; what comes back is what lies inside.

    No data: pixels that the file's nodata value, mask or alpha band declares empty, or that are not finite, in any of
    the chosen bands; of unsigned numbers in all of them, because one band may well be 0 or saturated. They are 0.
    Raises: DatasetError naming the file; MissingDependencyError for deep or multi-band TIFFs without rasterio.
    """
    frame = None
    if _wants_rasterio(path):
        with _opened(path) as file:
            chosen = _bands(file, bands, path)
            box = window and _inside(window, file.height, file.width)
            values, valid = file.read(chosen, window=box), _has_data(file, chosen, window=box)
            if _has_palette(file):
                values = _looked_up(values[0], file.colormap(1))
            frame = _frame(file)
    else:
        values, valid = _read_plain(path)
        if window:
            values, valid = values[:, *window.slices], valid[window.slices]
    valid &= np.isfinite(values).all(axis=0)
    if scaling is None and values.dtype != np.uint8:
        raise _unscaled(path, values, valid)
    pixels = values if scaling is None else _scaled(values, scaling)
    pixels = np.where(valid, pixels, np.uint8(0))
    rgb = np.ascontiguousarray(np.broadcast_to(pixels.transpose(1, 2, 0), (*valid.shape, 3)))
    return Raster(rgb, valid, frame.moved(window) if frame and window else frame)


def resolve_scaling(
    path: Path, scaling: Scaling | None, bands: Sequence[int] | None = None
) -> tuple[float, float] | None:
    """``scaling`` as two values for :func:`read_raster`.

    Percentiles are those of the valid pixels of all chosen bands together, so that the colours stay; large rasters are
    sampled evenly, some four million pixels of each band. Kept, as long as the file does not change.
    Raises: DatasetError when the values at both percentiles are the same, or no pixel is valid.
    """
    if not isinstance(scaling, Percentiles):
        return scaling
    return _percentiles(path, scaling, None if bands is None else tuple(bands), path.stat().st_mtime_ns)


@lru_cache(maxsize=65536)
def _percentiles(
    path: Path, percentiles: Percentiles, bands: tuple[int, ...] | None, changed: int
) -> tuple[float, float]:
    if _wants_rasterio(path):
        with _opened(path) as file:
            chosen = _bands(file, bands, path)
            shape = (min(file.height, _SAMPLE_SIDE), min(file.width, _SAMPLE_SIDE))
            values = file.read(chosen, out_shape=(len(chosen), *shape))
            valid = _has_data(file, chosen, out_shape=(len(chosen), *shape))
    else:
        values, valid = _read_plain(path)
    sample = values[:, valid].astype(np.float64).ravel()
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        raise DatasetError(str(path), "no pixel with data", "leave it out of the list")
    low, high = (float(v) for v in np.percentile(sample, [percentiles.low, percentiles.high]))
    if low == high:
        found = f"the same value ({low:g}) at percentiles {percentiles.low:g} and {percentiles.high:g}"
        raise DatasetError(str(path), found, "set dataset.segment.raster.scaling, or wider percentiles")
    return low, high


def _wants_rasterio(path: Path) -> bool:
    """Whether the file is one for rasterio. Without it, a TIFF that Pillow reads whole is read, and said so."""
    if path.suffix.lower() not in TIFF or not path.is_file():
        return False
    try:
        load_rasterio()
    except MissingDependencyError:
        tags = _tiff_tags(path)
        if max(tags.get(_BITS_PER_SAMPLE, (16,))) > 8:
            raise
        if any(tag in tags for tag in _GEO_TAGS):
            _say_once(f"{path.parent}: coordinates of the TIFFs are left out; pip install 'fiducial[geo]' keeps them")
        return False
    return True


def _tiff_tags(path: Path) -> Mapping[int, Any]:
    try:
        with Image.open(path) as image:
            return dict(getattr(image, "tag_v2", {}))
    except UnidentifiedImageError:  # of a kind that Pillow does not know, such as 16 bits for each of three colours
        return {}


@lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    log.warning("%s", message)


def _plain_info(path: Path) -> RasterInfo:
    try:
        image: Image.Image = Image.open(path)
    except (OSError, Image.DecompressionBombError):  # reading it whole says what is wrong, or that nothing is
        image = read_image(path)
    with image:
        dtype = np.dtype(ImageMode.getmode(image.mode).typestr).name
        return RasterInfo(path, image.height, image.width, len(image.getbands()), dtype, None)


def _read_plain(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values ``(C, H, W)``, one band where pixels are deep, else red, green and blue; and where alpha is not 0."""
    image = read_image(path)
    deep = image.mode.startswith("I") or image.mode == "F"
    values = np.asarray(image)[None] if deep else np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    valid = np.ones(values.shape[1:], dtype=bool)
    if "A" in image.getbands():
        valid = np.asarray(image.getchannel("A")) > 0
    return values, valid


def _scaled(values: NDArray[Any], scaling: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = scaling
    if not low < high:
        raise ValueError(f"scaling must be (low, high) with low < high, got {scaling}")
    levels = (np.nan_to_num(values.astype(np.float64)) - low) * (255 / (high - low))
    scaled: NDArray[np.uint8] = np.rint(levels.clip(0, 255)).astype(np.uint8)
    return scaled


def _has_data(file: Any, bands: Sequence[int], **part: Any) -> NDArray[np.bool_]:
    """Where the chosen bands have data, ``(H, W)``; see :func:`read_raster`."""
    masks_CHW = file.read_masks(list(bands), **part) > 0
    is_unsigned = all(np.dtype(file.dtypes[band - 1]).kind == "u" for band in bands)
    has_data: NDArray[np.bool_] = masks_CHW.any(axis=0) if is_unsigned else masks_CHW.all(axis=0)
    return has_data


def _unscaled(path: Path, values: NDArray[Any], valid: NDArray[np.bool_]) -> DatasetError:
    inside = values[:, valid]
    spread = f", values {inside.min():g} .. {inside.max():g}" if inside.size else ""
    return DatasetError(str(path), f"{values.dtype} pixels{spread}", RASTER_FIX)


def _bands(file: Any, bands: Sequence[int] | None, path: Path) -> list[int]:
    if bands is not None:
        if len(bands) not in (1, 3) or not all(1 <= band <= file.count for band in bands):
            found = f"bands {list(bands)} of {file.count}"
            raise DatasetError(str(path), found, "name one or three in dataset.segment.raster.bands")
        return list(bands)
    meaning = [interpretation.name for interpretation in file.colorinterp]
    if {"red", "green", "blue"} <= set(meaning):
        return [meaning.index(name) + 1 for name in ("red", "green", "blue")]
    colours = [k + 1 for k, name in enumerate(meaning) if name != "alpha"]
    if len(colours) == 2:
        raise DatasetError(str(path), "two bands", "name one or three in dataset.segment.raster.bands")
    return colours[:3]


def _has_palette(file: Any) -> bool:
    return bool(file.colorinterp[0].name == "palette" and file.dtypes[0] == "uint8")


def _looked_up(index_HW: NDArray[np.uint8], colours: Mapping[int, tuple[int, ...]]) -> NDArray[np.uint8]:
    table = np.array([colours.get(k, (0, 0, 0))[:3] for k in range(256)], dtype=np.uint8)
    return table[index_HW].transpose(2, 0, 1)


def _inside(window: Window, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The window's rows and columns as rasterio wants them."""
    bottom, right = window.top + window.height, window.left + window.width
    return (window.top, min(bottom, height)), (window.left, min(right, width))


def _frame(file: Any) -> GeoFrame | None:
    if file.crs is None and file.transform.is_identity:
        return None
    return GeoFrame(file.crs.to_wkt() if file.crs else "", tuple(file.transform)[:6])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    rasterio = load_rasterio()
    try:
        with quiet(rasterio), rasterio.open(path) as file:
            yield file
    except rasterio.errors.RasterioIOError as error:
        raise DatasetError(str(path), f"a raster that cannot be read ({error})", "copy or export it again") from error
