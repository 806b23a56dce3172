"""Rasters with a place on earth: reading with a stated scaling, and masks back out as GeoTIFF and polygons.

Needs rasterio (extra ``geo``) for all but plain 8-bit pictures, which :mod:`fiducial.data.images` reads.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode, UnidentifiedImageError

from changenet.segment.counts import IGNORED
from changenet.segment.objects import label_objects
from changenet.segment.tiles import Window
from fiducial.data.images import read_image
from fiducial.errors import DatasetError, MissingDependencyError, Problem, optional

__all__ = [
    "GeoFrame",
    "Percentiles",
    "Raster",
    "RasterInfo",
    "Scaling",
    "check_alignment",
    "polygons",
    "read_info",
    "read_raster",
    "resolve_scaling",
    "write_geotiff",
    "write_polygons",
]

log = logging.getLogger("fiducial")

_TIFF = (".tif", ".tiff")
_GEO_TAGS = (33550, 33922, 34264, 34735)  # GeoTIFF: pixel scale, tie points, transformation, keys
_BITS_PER_SAMPLE = 258
_SAMPLE_SIDE = 2048  # percentiles come from at most this many pixels squared
_SHIFT = 0.01  # pixels by which two frames may differ
_EQUAL_AREA = "EPSG:6933"
_WGS84 = "EPSG:4326"


@dataclass(frozen=True)
class Percentiles:
    """The values of a raster that ``low`` and ``high`` percent of its valid pixels lie below."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(f"percentiles must satisfy 0 <= low < high <= 100, got {self.low}, {self.high}")


RASTER_FIX = "set dataset.segment.raster.percentiles, or .scaling"
"""What to do about pixels of more than 8 bits."""

Scaling = tuple[float, float] | Percentiles
"""Which values become 0 and 255: the two values, or percentiles of each raster."""


@dataclass(frozen=True)
class GeoFrame:
    """Where a raster lies: ``crs`` as WKT (empty: not stated), and the affine ``transform`` (a, b, c, d, e, f).

    Map coordinates of the corner of pixel (row, column): ``x = a·column + b·row + c``, ``y = d·column + e·row + f``.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in square units of the map (of degrees, for geographic coordinates)."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    def moved(self, window: Window) -> GeoFrame:
        """The frame of a window."""
        a, b, c, d, e, f = self.transform
        x, y = a * window.left + b * window.top + c, d * window.left + e * window.top + f
        return GeoFrame(self.crs, (a, b, x, d, e, y))


@dataclass(frozen=True)
class RasterInfo:
    """What a file's header says. ``frame`` is None for a picture without a place."""

    path: Path
    height: int
    width: int
    num_bands: int
    dtype: str
    frame: GeoFrame | None


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


def check_alignment(infos: Sequence[RasterInfo]) -> Iterator[Problem]:
    """What keeps files (two images, then perhaps their mask) from showing the same ground pixel by pixel.

    All are held to the first: sizes must agree, and coordinate systems and transforms too (corners within 0.01 pixel),
    each where both files state it. What a file leaves out is taken to be as in the first: usual for a mask, a warning
    for an image.
    """
    first, *others = infos
    for i, other in enumerate(others, 1):
        where = f"{other.path} and {first.path}"
        if (other.height, other.width) != (first.height, first.width):
            found = f"{other.height} × {other.width} and {first.height} × {first.width} pixels"
            yield Problem(where, found, "cut both to the same extent and resolution, as with `rio warp --like`")
            continue
        if other.frame and first.frame:
            yield from _frame_problems(where, other.frame, first.frame, (first.height, first.width))
        if i == 1 and (silent := _silent(first, other)):
            found = f"{silent[0].path.name} states no {silent[1]}"
            yield Problem(where, found, "they are taken to cover the same ground; check that they do", "warning")


def _silent(first: RasterInfo, other: RasterInfo) -> tuple[RasterInfo, str] | None:
    """The one of two files that does not say where it lies as the other does, and what it does not say."""
    if bool(first.frame) != bool(other.frame):
        return (other if first.frame else first), "coordinates"
    if first.frame and other.frame and bool(first.frame.crs) != bool(other.frame.crs):
        return (other if first.frame.crs else first), "coordinate system"
    return None


def _frame_problems(where: str, frame: GeoFrame, reference: GeoFrame, size: tuple[int, int]) -> Iterator[Problem]:
    rasterio = _rasterio()
    crs, reference_crs = (rasterio.crs.CRS.from_wkt(f.crs) if f.crs else None for f in (frame, reference))
    if crs and reference_crs and crs != reference_crs:
        found = f"coordinates of {_crs_name(frame)} and {_crs_name(reference)}"
        yield Problem(where, found, "reproject one of them, as with `rio warp --like`")
        return
    corners = [(row, column) for row in (0, size[0]) for column in (0, size[1])]
    distance = max(math.dist(_place(frame, *corner), _place(reference, *corner)) for corner in corners)
    apart = distance / math.sqrt(reference.pixel_area)
    if apart > _SHIFT:
        yield Problem(where, f"corners {apart:.3g} pixels apart", "resample one onto the other (`rio warp --like`)")


def write_geotiff(
    path: Path,
    values_HW: NDArray[Any],
    frame: GeoFrame | None,
    *,
    colours: Sequence[tuple[int, int, int]] | None = None,
    nodata: float | None = None,
) -> None:
    """One band ``(H, W)`` (a uint8 mask, a float32 probability) as a tiled, losslessly compressed GeoTIFF.

    ``colours``: the colour of each class of a uint8 mask, shown by GIS programs. ``nodata``: the value that means none.
    Folders are made.
    """
    rasterio = _rasterio()
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values_HW.shape
    place: dict[str, Any] = {}
    if frame is not None:
        place = {"transform": rasterio.Affine(*frame.transform), "crs": frame.crs or None}
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": values_HW.dtype.name}
    storage = {"compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer"}
    with _quiet(rasterio), rasterio.open(path, "w", **profile, **storage, **place, nodata=nodata) as file:
        file.write(values_HW, 1)
        if colours is not None:
            file.write_colormap(1, {k: (*colour, 255) for k, colour in enumerate(colours)})


def polygons(
    mask: NDArray[np.uint8],
    frame: GeoFrame | None,
    *,
    class_names: Mapping[int, str] | None = None,
    min_area: int = 0,
    wgs84: bool = False,
) -> dict[str, Any]:
    """The changed areas of ``mask`` (uint8 class numbers ``(H, W)``; 0 and 255 are none) as a GeoJSON collection.

    A feature is a set of pixels of one class, 8-connected as in :mod:`changenet.segment.objects`, of ``min_area``
    pixels or more; parts that touch by a corner only are parts of a MultiPolygon, so that every geometry is valid.
    Properties: ``id`` from 1, ``class``, ``name``, ``pixels``, ``area`` in square map units, and ``area_m2`` on the
    ground, measured in the equal-area projection EPSG:6933 (a map in feet, degrees or Mercator metres tells another).

    Coordinates are the raster's own, with the ``crs`` member that GIS programs read, or with ``wgs84`` longitude and
    latitude as RFC 7946 wants them; without a frame, columns and rows.
    Raises: DatasetError when ``wgs84`` is asked for and the frame states no coordinate system.
    """
    rasterio = _rasterio()
    crs = rasterio.crs.CRS.from_wkt(frame.crs) if frame and frame.crs else None
    on_earth = crs is not None and (crs.is_geographic or crs.is_projected)
    if wgs84 and not on_earth:
        raise DatasetError("polygons", "no coordinate system to convert to WGS 84 from", "keep the map's coordinates")
    properties: list[dict[str, Any]] = []
    geometries: list[dict[str, Any]] = []
    for value in sorted(set(np.unique(mask).tolist()) - {0, IGNORED}):
        for num_pixels, geometry in _shapes(rasterio, mask == value, frame, min_area):
            name = {} if class_names is None else {"name": class_names.get(value, str(value))}
            area = num_pixels * (frame.pixel_area if frame else 1.0)
            about = {"id": len(properties) + 1, "class": value, **name, "pixels": num_pixels, "area": area}
            properties.append(about)
            geometries.append(geometry)
    if on_earth and geometries:
        for about, flat in zip(properties, rasterio.warp.transform_geom(crs, _EQUAL_AREA, geometries), strict=True):
            about["area_m2"] = _flat_area(flat)
        if wgs84:
            geometries = rasterio.warp.transform_geom(crs, _WGS84, geometries)
    features = [
        {"type": "Feature", "properties": about, "geometry": _plain(geometry)}
        for about, geometry in zip(properties, geometries, strict=True)
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is not None and not wgs84:
        collection["crs"] = {"type": "name", "properties": {"name": _urn(crs)}}
    return collection


def _shapes(
    rasterio: ModuleType, changed_HW: NDArray[np.bool_], frame: GeoFrame | None, min_area: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of pixels and geometry of each object, in the coordinates of the frame."""
    label_HW, num = label_objects(changed_HW)
    num_pixels = np.bincount(label_HW.ravel(), minlength=num + 1)
    kept = num_pixels >= min_area
    kept[0] = False
    affine = rasterio.Affine(*frame.transform) if frame else rasterio.Affine.identity()
    parts: dict[int, list[Any]] = {int(label): [] for label in np.flatnonzero(kept)}
    for shape, label in rasterio.features.shapes(label_HW, mask=kept[label_HW], connectivity=4, transform=affine):
        parts[int(label)].append(shape["coordinates"])
    for label, coordinates in parts.items():
        if len(coordinates) == 1:
            yield int(num_pixels[label]), {"type": "Polygon", "coordinates": coordinates[0]}
        else:
            yield int(num_pixels[label]), {"type": "MultiPolygon", "coordinates": coordinates}


def write_polygons(path: Path, collection: Mapping[str, Any]) -> None:
    """A collection of :func:`polygons` as a GeoJSON file. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(collection, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _wants_rasterio(path: Path) -> bool:
    """Whether the file is one for rasterio. Without it, a TIFF that Pillow reads whole is read, and said so."""
    if path.suffix.lower() not in _TIFF or not path.is_file():
        return False
    try:
        _rasterio()
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


def _place(frame: GeoFrame, row: float, column: float) -> tuple[float, float]:
    a, b, c, d, e, f = frame.transform
    return a * column + b * row + c, d * column + e * row + f


def _crs_name(frame: GeoFrame) -> str:
    crs = _rasterio().crs.CRS.from_wkt(frame.crs)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else frame.crs.split('"')[1]


def _urn(crs: Any) -> str:
    code = crs.to_epsg()
    return f"urn:ogc:def:crs:EPSG::{code}" if code else str(crs.to_wkt())


def _flat_area(geometry: Mapping[str, Any]) -> float:
    """Area of a polygon, or of several; the rings of each are its outline and its holes."""
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return sum(_ring_area(outline) - sum(map(_ring_area, holes)) for outline, *holes in polygons)


def _ring_area(ring: Sequence[Sequence[float]]) -> float:
    x, y = (np.array(values) for values in zip(*ring, strict=True))
    x, y = x - x[0], y - y[0]  # coordinates are millions of metres, fields a few: keep the digits
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)


def _plain(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """A GeoJSON geometry of dicts and lists."""

    def listed(value: Any) -> Any:
        return [listed(item) for item in value] if isinstance(value, list | tuple) else value

    return {"type": geometry["type"], "coordinates": listed(geometry["coordinates"])}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    rasterio = _rasterio()
    try:
        with _quiet(rasterio), rasterio.open(path) as file:
            yield file
    except rasterio.errors.RasterioIOError as error:
        raise DatasetError(str(path), f"a raster that cannot be read ({error})", "copy or export it again") from error


@contextmanager
def _quiet(rasterio: ModuleType) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a plain TIFF is fine
        yield


def _rasterio() -> ModuleType:
    rasterio = optional("rasterio", extra="geo")
    for part in ("crs", "features", "warp", "errors"):
        optional(f"rasterio.{part}", extra="geo")
    return rasterio
