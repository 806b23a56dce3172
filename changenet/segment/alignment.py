"""Whether several rasters show the same ground."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from changenet.segment.frames import GeoFrame, RasterInfo, load_rasterio
from fiducial.errors import Problem

__all__ = ["check_alignment"]

_SHIFT = 0.01  # pixels by which two frames may differ


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
        if i == 1 and (told := [info for info in (first, other) if info.other_place]):
            found = f"{told[0].path.name} is placed by {told[0].other_place}, which is not used"
            fix = "they are taken to cover the same ground; rectify them (`gdalwarp`) to be sure, and to have maps"
            yield Problem(where, found, fix, "warning")
        elif i == 1 and (silent := _silent(first, other)):
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
    crs, reference_crs = (horizontal(rasterio, f.crs) if f.crs else None for f in (frame, reference))
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


def horizontal(rasterio: ModuleType, wkt: str) -> Any:
    """The coordinate system without heights, which say nothing of where a pixel lies."""
    crs = rasterio.crs.CRS.from_wkt(wkt)
    tree = crs.to_dict(projjson=True)
    part = tree
    while "components" in part or "source_crs" in part:  # of a compound system; of one bound to another datum
        part = part["components"][0] if "components" in part else part["source_crs"]
    axes = part.get("coordinate_system", {}).get("axis", ())
    if len(axes) == 3:
        flat = {**part["coordinate_system"], "axis": axes[:2]}
        part = {key: value for key, value in part.items() if key not in ("id", "ids")} | {"coordinate_system": flat}
    return crs if part is tree else rasterio.crs.CRS.from_dict(part)


def _crs_name(frame: GeoFrame) -> str:
    crs = load_rasterio().crs.CRS.from_wkt(frame.crs)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else frame.crs.split('"')[1]
