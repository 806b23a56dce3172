"""Masks and probabilities as maps, for GIS programs: GeoTIFF and GeoJSON polygons. Needs rasterio (extra ``geo``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from changenet.segment.counts import IGNORED
from changenet.segment.frames import GeoFrame, load_rasterio, quiet
from changenet.segment.objects import connected_components
from fiducial.errors import DatasetError

__all__ = ["polygons", "write_geotiff", "write_polygons"]

_EQUAL_AREA = "+proj=laea +lat_0={} +lon_0={} +datum=WGS84 +units=m"
"""Keeps areas, and is whole but for the point opposite its centre: no edge at 180° or at the poles."""
_CELL = 5
"""Degrees of longitude and latitude by which areas share a centre."""
_WGS84 = "EPSG:4326"


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
    rasterio = load_rasterio()
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values_HW.shape
    place: dict[str, Any] = {}
    if frame is not None:
        place = {"transform": rasterio.Affine(*frame.transform), "crs": frame.crs or None}
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": values_HW.dtype.name}
    storage = {"compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer"}
    with quiet(rasterio), rasterio.open(path, "w", **profile, **storage, **place, nodata=nodata) as file:
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

    A feature is a connected component of one class, as in :mod:`changenet.segment.objects`, of ``min_area`` pixels or
    more; parts that touch by a corner only are parts of a MultiPolygon, so that every geometry is valid.
    Properties: ``id`` from 1, ``class``, ``name``, ``pixels``, ``area`` in square map units, and ``area_m2`` on the
    ground, measured in an equal-area projection (a map in feet, degrees or Mercator metres tells another); it is left
    out where the map has no place on earth.

    Coordinates are the raster's own, with the ``crs`` member that GIS programs read, or with ``wgs84`` longitude and
    latitude as RFC 7946 wants them, cut at 180°; without a frame, columns and rows. Outlines run counterclockwise (with
    the first coordinate to the right and the second upwards), holes clockwise.
    Raises: DatasetError when ``wgs84`` is asked for and the frame states no coordinate system.
    """
    rasterio = load_rasterio()
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
        for about, on_ground in zip(properties, _ground_areas(rasterio, crs, geometries), strict=True):
            about |= {} if on_ground is None else {"area_m2": on_ground}
        if wgs84:
            geometries = _in_wgs84(rasterio, crs, geometries)
    features = [
        {"type": "Feature", "properties": about, "geometry": _turned(geometry)}
        for about, geometry in zip(properties, geometries, strict=True)
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is not None and not wgs84:
        collection["crs"] = {"type": "name", "properties": {"name": _urn(crs)}}
    return collection


def _shapes(
    rasterio: ModuleType, foreground_HW: NDArray[np.bool_], frame: GeoFrame | None, min_area: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of pixels and geometry of each connected component, in the coordinates of the frame."""
    label_HW, num = connected_components(foreground_HW)
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


def _urn(crs: Any) -> str:
    code = crs.to_epsg()
    return f"urn:ogc:def:crs:EPSG::{code}" if code else str(crs.to_wkt())


def _ground_areas(rasterio: ModuleType, crs: Any, geometries: Sequence[dict[str, Any]]) -> list[float | None]:
    """Square metres of each geometry; None for those that the coordinate system has no place on earth for."""
    areas: list[float | None] = [None] * len(geometries)
    for flat, members in _by_centre(rasterio, crs, geometries).items():
        for i, geometry in _moved(rasterio, crs, flat, {i: geometries[i] for i in members}).items():
            area = _flat_area(geometry)
            areas[i] = area if np.isfinite(area) else None
    return areas


def _in_wgs84(rasterio: ModuleType, crs: Any, geometries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Longitude and latitude. Raises: DatasetError where the coordinate system has no place on earth for some."""
    placed: dict[int, dict[str, Any]] = {}
    for flat, members in _by_centre(rasterio, crs, geometries).items():
        # by way of a flat map, since longitudes beyond 180° would stay as they are
        there = _moved(rasterio, crs, flat, {i: geometries[i] for i in members})
        placed |= _moved(rasterio, flat, _WGS84, there)
    if len(placed) < len(geometries):
        raise DatasetError("polygons", "coordinates beyond their coordinate system", "keep the map's coordinates")
    return [placed[i] for i in range(len(geometries))]


def _by_centre(rasterio: ModuleType, crs: Any, geometries: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """The places of the geometries in their sequence, by an equal-area map around them."""
    x, y = zip(*(_outlines(geometry)[0][0][0] for geometry in geometries), strict=True)
    try:
        longitudes, latitudes = rasterio.warp.transform(crs, _WGS84, x, y)
    except Exception:  # GDAL's errors have no public names
        return {}
    maps: dict[str, list[int]] = {}
    for i, (lon, lat) in enumerate(zip(longitudes, latitudes, strict=True)):
        if np.isfinite([lon, lat]).all():
            maps.setdefault(_EQUAL_AREA.format(*(_CELL * round(at / _CELL) for at in (lat, lon))), []).append(i)
    return maps


def _moved(rasterio: ModuleType, source: Any, target: Any, geometries: dict[int, Any]) -> dict[int, dict[str, Any]]:
    """The geometries in other coordinates, under their numbers; none where these do not reach."""
    try:
        moved = rasterio.warp.transform_geom(source, target, list(geometries.values()))
    except Exception:  # as above
        return {}
    return dict(zip(geometries, moved, strict=True))


def _outlines(geometry: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """The polygons of a geometry, each its outline and then its holes."""
    outlines: Sequence[Sequence[Any]] = geometry["coordinates"]
    return outlines if geometry["type"] == "MultiPolygon" else [outlines]


def _flat_area(geometry: Mapping[str, Any]) -> float:
    return sum(
        abs(_ring_area(outline)) - sum(abs(_ring_area(hole)) for hole in holes)
        for outline, *holes in _outlines(geometry)
    )


def _ring_area(ring: Sequence[Sequence[float]]) -> float:
    """Above 0 where the ring runs counterclockwise."""
    x, y = (np.array(values) for values in zip(*ring, strict=True))
    x, y = x - x[0], y - y[0]  # coordinates are millions of metres, fields a few: keep the digits
    return float((np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)


def _turned(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """A GeoJSON geometry of dicts and lists, its outlines counterclockwise and its holes clockwise."""
    parts = [[_ring(ring, 1 if i == 0 else -1) for i, ring in enumerate(rings)] for rings in _outlines(geometry)]
    return {"type": geometry["type"], "coordinates": parts if geometry["type"] == "MultiPolygon" else parts[0]}


def _ring(ring: Sequence[Sequence[float]], sign: int) -> list[list[float]]:
    points = [list(point) for point in ring]
    return points if sign * _ring_area(ring) >= 0 else points[::-1]
