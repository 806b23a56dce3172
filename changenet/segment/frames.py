"""Where a raster lies on earth, and what its header says. What touches coordinates needs rasterio (extra ``geo``)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from changenet.segment.tiles import Window
from fiducial.errors import optional

__all__ = ["GeoFrame", "RasterInfo", "load_rasterio", "place_of", "quiet"]

_MAX_RESIDUAL = 0.5  # pixels that a ground control point may lie beside the straight grid through all of them


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
    other_place: str = ""
    """How the file says where it lies where no ``frame`` can say it: by a camera model, for example."""


def place_of(file: Any) -> tuple[GeoFrame | None, str]:
    """Where an open rasterio dataset lies, or else how it says so; see :class:`RasterInfo`."""
    crs = file.crs.to_wkt() if file.crs else ""
    if not file.transform.is_identity:
        return GeoFrame(crs, tuple(file.transform)[:6]), ""
    points, points_crs = file.gcps
    if points:
        transform, off = _grid_through(points)
        if not off <= _MAX_RESIDUAL:
            return None, f"{len(points)} control points, which no straight grid fits ({off:.3g} pixels off)"
        return GeoFrame(points_crs.to_wkt() if points_crs else crs, transform), ""
    if file.rpcs:
        return None, "a camera model (RPC)"
    if file.tags(ns="GEOLOCATION"):
        return None, "a grid of coordinates (geolocation arrays)"
    return (GeoFrame(crs, tuple(file.transform)[:6]) if crs else None), ""


def _grid_through(points: Sequence[Any]) -> tuple[tuple[float, float, float, float, float, float], float]:
    """The transform that fits ground control points best, and how many pixels the worst lies beside it."""
    place = np.array([(point.col, point.row, 1) for point in points], np.float64)
    x_y = np.array([(point.x, point.y) for point in points], np.float64)
    middle = x_y.mean(axis=0)
    fitted, _, rank, _ = np.linalg.lstsq(place, x_y - middle, rcond=None)
    (a, d), (b, e), _ = fitted.tolist()
    if rank < 3 or a * e == b * d:
        return (1, 0, 0, 0, 1, 0), math.inf
    beside = (x_y - middle - place @ fitted) @ np.linalg.inv(fitted[:2])
    c, f = (fitted[2] + middle).tolist()
    return (a, b, c, d, e, f), float(np.linalg.norm(beside, axis=1).max())


def load_rasterio() -> ModuleType:
    """rasterio with the parts that are used here. Raises: MissingDependencyError."""
    rasterio = optional("rasterio", extra="geo")
    for part in ("crs", "features", "warp", "errors"):
        optional(f"rasterio.{part}", extra="geo")
    return rasterio


@contextmanager
def quiet(rasterio: ModuleType) -> Iterator[None]:
    """Without rasterio's warning that a plain TIFF has no place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
