"""Reading rasters, or windows of them: pictures as 8-bit RGB with a stated scaling, masks as the numbers they hold.

Needs rasterio (extra ``geo``) for all but plain 8-bit pictures, which :mod:`fiducial.data.images` reads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageMode

from changenet.segment.frames import GeoFrame, RasterInfo, load_rasterio, place_of
from changenet.segment.mosaics import is_unscaled
from changenet.segment.raster_files import TIFF, is_raster, opened
from changenet.segment.tiff import BITS_PER_SAMPLE, GEO_TAGS, directories, missing_bytes
from changenet.segment.tiles import Window
from fiducial.data.files import is_file, why_unreadable
from fiducial.data.images import has_16_bits, open_image, read_image
from fiducial.errors import DatasetError, MissingDependencyError

__all__ = [
    "RASTER_FIX",
    "TIFF",
    "Numbers",
    "Percentiles",
    "Raster",
    "Scaling",
    "check_raster",
    "is_raster",
    "read_info",
    "read_numbers",
    "read_raster",
    "read_rows",
    "resolve_scaling",
    "wants_rasterio",
]

log = logging.getLogger("fiducial")

RASTER_FIX = "set dataset.segment.raster.percentiles, or .scaling"
"""What to do about pixels of more than 8 bits."""
MASK_FIX = "write one channel of 8 bits: 0 and 255, or class numbers"
"""What to do about a mask that is none."""
_MOST_BANDS = 4
_SAMPLE_SIDE = 2048  # percentiles come from at most this many pixels squared
_AT_ONCE = 1 << 24  # pixels that a check decodes at a time
_FEWEST_ROWS = 256  # that are worth a call of their own


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


def read_info(path: Path, *, root: Path | None = None) -> RasterInfo:
    """The header only. Raises: DatasetError when it cannot be read; MissingDependencyError, see :func:`read_raster`."""
    if not wants_rasterio(path):
        return _plain_info(path)
    with opened(path, root=root) as file:
        return RasterInfo(path, file.height, file.width, file.count, file.dtypes[0], *place_of(file))


def read_raster(
    path: Path,
    *,
    root: Path | None = None,
    scaling: tuple[float, float] | None = None,
    bands: Sequence[int] | None = None,
    window: Window | None = None,
) -> Raster:
    """A raster, or a window of it, as 8-bit RGB.

    ``scaling`` (low, high): values become ``(value - low) / (high - low) · 255``, rounded and cut at 0 and 255. Without
    it the pixels must be 8-bit and stay as they are: what deeper pixels mean is never guessed. Percentiles are made
    values of by :func:`resolve_scaling`. ``bands``: one or three band numbers from 1 (red, green, blue); None takes the
    bands that the file marks as such, else its first three, or its only one. ``window`` may reach over the right and
    lower border; what comes back is what lies inside. ``root`` is the folder of the data set, whose files a VRT may
    name. Pictures of 1, 2 or 4 bits are spread over 0..255, and where 0 means white they are inverted, as in TAO.

    No data: pixels that the file's nodata value, mask or alpha band declares empty, or that are not finite, in any of
    the chosen bands; of unsigned numbers in all of them, because one band may well be 0 or saturated. They are 0.
    Raises: DatasetError naming the file; MissingDependencyError for deep or multi-band TIFFs without rasterio.
    """
    if wants_rasterio(path):
        with opened(path, root=root) as file:
            return _part(file, path, scaling, _bands(file, bands, path), window)
    values, valid = _read_plain(path)
    if window:
        values, valid = values[:, *window.slices], valid[window.slices]
    return _as_rgb(path, values, valid, scaling)


def read_rows(
    path: Path,
    *,
    root: Path | None = None,
    scaling: tuple[float, float] | None = None,
    bands: Sequence[int] | None = None,
) -> Iterator[Raster]:
    """A raster from top to bottom, in parts of its width: together they are :func:`read_raster`.

    A part ends where a row of the file's blocks (tiles, strips) ends and has no more rows than that takes, 256 at
    least, so that no block is decoded twice. What is not stored in such blocks is one part: plain pictures, and
    mosaics that scale their files.
    Raises: as :func:`read_raster`, when the part comes.
    """
    if not wants_rasterio(path) or (path.suffix.lower() == ".vrt" and not is_unscaled(path)):
        yield read_raster(path, root=root, scaling=scaling, bands=bands)
        return
    with opened(path, root=root) as file:
        chosen = _bands(file, bands, path)
        block = max(file.block_shapes[band - 1][0] for band in chosen)
        step = -(-_FEWEST_ROWS // block) * block
        for top in range(0, file.height, step):
            yield _part(file, path, scaling, chosen, Window(top, 0, step, file.width))


def _part(
    file: Any, path: Path, scaling: tuple[float, float] | None, chosen: Sequence[int], window: Window | None
) -> Raster:
    box = window and _inside(window, file.height, file.width)
    values, valid = file.read(chosen, window=box), _has_data(file, chosen, window=box)
    if _has_palette(file):
        values = _looked_up(values[0], file.colormap(1))
    elif scaling is None and values.dtype == np.uint8:
        values = _as_shown(file, values)
    frame = place_of(file)[0]
    return _as_rgb(path, values, valid, scaling, frame.moved(window) if frame and window else frame)


def _as_rgb(
    path: Path,
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    scaling: tuple[float, float] | None,
    frame: GeoFrame | None = None,
) -> Raster:
    valid &= np.isfinite(values).all(axis=0)
    if scaling is None and values.dtype != np.uint8:
        raise _unscaled(path, values, valid)
    pixels = values if scaling is None else _scaled(values, scaling)
    pixels = np.where(valid, pixels, np.uint8(0))
    rgb = np.ascontiguousarray(np.broadcast_to(pixels.transpose(1, 2, 0), (*valid.shape, 3)))
    return Raster(rgb, valid, frame)


def resolve_scaling(
    path: Path, scaling: Scaling | None, bands: Sequence[int] | None = None, *, root: Path | None = None
) -> tuple[float, float] | None:
    """``scaling`` as two values for :func:`read_raster`.

    Percentiles are those of the valid pixels of all chosen bands together, so that the colours stay; large rasters are
    sampled evenly, some four million pixels of each band. Kept, as long as the file does not change.
    Raises: DatasetError when the values at both percentiles are the same, or no pixel is valid.
    """
    if not isinstance(scaling, Percentiles):
        return scaling
    if wrong := why_unreadable(path):
        raise DatasetError(str(path), *wrong)
    return _percentiles(path, scaling, None if bands is None else tuple(bands), root, path.stat().st_mtime_ns)


@lru_cache(maxsize=65536)
def _percentiles(
    path: Path, percentiles: Percentiles, bands: tuple[int, ...] | None, root: Path | None, changed: int
) -> tuple[float, float]:
    if wants_rasterio(path):
        with opened(path, root=root) as file:
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


@dataclass(frozen=True)
class Numbers:
    """The numbers ``(H, W)`` of a raster that is no picture, as they are stored; ``valid`` where there are some.

    ``nodata``: the number that the file declares to mean none.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    nodata: float | None


def read_numbers(path: Path, *, root: Path | None = None) -> Numbers:
    """The one band of a raster, or several that are the same. Needs rasterio.

    A declared ``nodata`` of 0 is not followed: in masks, 0 is the class that nothing happened in, and programs that
    burn polygons into rasters declare it by default.
    Raises: DatasetError naming the file, for colours and complex numbers too.
    """
    with opened(path, root=root) as file:
        bands = [band for band, meaning in enumerate(file.colorinterp, start=1) if meaning.name != "alpha"]
        if not 0 < len(bands) <= _MOST_BANDS or "complex" in file.dtypes[bands[0] - 1]:
            found = f"{len(bands)} bands of {file.dtypes[0]}"
            raise DatasetError(str(path), found, MASK_FIX)
        values, nodata = file.read(bands[0]), file.nodatavals[bands[0] - 1]
        valid = np.ones(values.shape, dtype=bool) if nodata == 0 else file.read_masks(bands[0]) > 0
        if any(not np.array_equal(values, file.read(band), equal_nan=True) for band in bands[1:]):
            raise DatasetError(str(path), f"a colour picture ({len(bands)} bands)", MASK_FIX)
    if values.dtype.kind == "f":
        valid &= ~np.isnan(values)
    return Numbers(values, valid, nodata)


def check_raster(
    path: Path, scaling: Scaling | None, bands: Sequence[int] | None, *, decode: bool, root: Path | None = None
) -> None:
    """Raises what :func:`read_raster` would raise, as far as it shows without decoding; ``decode`` all of it, too."""
    if path.suffix.lower() in TIFF and (missing := missing_bytes(path)):
        raise DatasetError(str(path), f"a TIFF that is cut off ({missing:,} bytes are missing)", "copy it again")
    with opened(path, root=root) as file:
        chosen = _bands(file, bands, path)
        if scaling is None and file.dtypes[chosen[0] - 1] != "uint8":
            raise DatasetError(str(path), f"{file.dtypes[chosen[0] - 1]} pixels", RASTER_FIX)
        step = max(1, _AT_ONCE // file.width)
        for top in range(0, file.height, step) if decode else ():
            rows = _inside(Window(top, 0, step, file.width), file.height, file.width)
            file.read(chosen, window=rows)
            _has_data(file, chosen, window=rows)
    if decode:
        resolve_scaling(path, scaling, bands, root=root)


def wants_rasterio(path: Path) -> bool:
    """Whether a file is one for rasterio. Without it, a picture that Pillow reads whole is read, and said so."""
    if not is_raster(path) or not is_file(path):
        return False
    try:
        load_rasterio()
    except MissingDependencyError:
        if path.suffix.lower() == ".vrt":
            raise
        tags: Mapping[int, Any] = next(iter(directories(path)), {}) if path.suffix.lower() in TIFF else {}
        if max(np.atleast_1d(tags.get(BITS_PER_SAMPLE, 8))) > 8:
            raise
        if any(tag in tags for tag in GEO_TAGS):
            _say_once(f"{path.parent}: coordinates of the TIFFs are left out; pip install 'fiducial[geo]' keeps them")
        return False
    return True


@lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    log.warning("%s", message)


def _plain_info(path: Path) -> RasterInfo:
    with open_image(path) as image:
        dtype = np.dtype(ImageMode.getmode(image.mode).typestr).name
        return RasterInfo(path, image.height, image.width, len(image.getbands()), dtype, None)


def _read_plain(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values ``(C, H, W)``, one band where pixels are deep, else red, green and blue; and where alpha is not 0."""
    image = read_image(path)
    if len(image.getbands()) > 1 and has_16_bits(path):
        found = "16 bits in each of several channels, of which only the higher 8 can be read"
        raise DatasetError(str(path), found, "save it as TIFF")
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
    if not colours or "complex" in file.dtypes[colours[0] - 1]:
        raise DatasetError(str(path), f"{len(colours)} bands of {file.dtypes[0]}", "save it as RGB, or as one band")
    return colours[:3]


def _as_shown(file: Any, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels of a picture as levels of grey, where the file has fewer than 8 bits, or counts from white."""
    about, band = file.tags(ns="IMAGE_STRUCTURE"), file.tags(1, ns="IMAGE_STRUCTURE")
    highest = 2 ** min(int(band.get("NBITS", 8)), 8) - 1
    levels = values if highest == 255 else (values.astype(np.uint16) * 255 // highest).astype(np.uint8)
    return 255 - levels if about.get("MINISWHITE") == "YES" else levels


def _has_palette(file: Any) -> bool:
    return bool(file.colorinterp[0].name == "palette" and file.dtypes[0] == "uint8")


def _looked_up(index_HW: NDArray[np.uint8], colours: Mapping[int, tuple[int, ...]]) -> NDArray[np.uint8]:
    table = np.array([colours.get(k, (0, 0, 0))[:3] for k in range(256)], dtype=np.uint8)
    return table[index_HW].transpose(2, 0, 1)


def _inside(window: Window, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The window's rows and columns as rasterio wants them."""
    bottom, right = window.top + window.height, window.left + window.width
    return (window.top, min(bottom, height)), (window.left, min(right, width))
