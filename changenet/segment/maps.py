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

_EQUAL_AREA = "EPSG:6933"
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
    ground, measured in the equal-area projection EPSG:6933 (a map in feet, degrees or Mercator metres tells another).

    Coordinates are the raster's own, with the ``crs`` member that GIS programs read, or with ``wgs84`` longitude and
    latitude as RFC 7946 wants them; without a frame, columns and rows.
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
