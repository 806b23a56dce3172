"""Where a raster lies on earth, and whether several show the same ground.

What touches coordinates needs rasterio (extra ``geo``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from changenet.segment.tiles import Window
from fiducial.errors import Problem, optional

__all__ = ["GeoFrame", "RasterInfo", "check_alignment", "load_rasterio", "quiet"]

_SHIFT = 0.01  # pixels by which two frames may differ


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
    rasterio = load_rasterio()
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


def _place(frame: GeoFrame, row: float, column: float) -> tuple[float, float]:
    a, b, c, d, e, f = frame.transform
    return a * column + b * row + c, d * column + e * row + f


def _crs_name(frame: GeoFrame) -> str:
    crs = load_rasterio().crs.CRS.from_wkt(frame.crs)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else frame.crs.split('"')[1]


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
