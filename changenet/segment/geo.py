"""Rasters and their places on earth, for programs: all of it in one place. Needs rasterio (extra ``geo``)."""

from changenet.segment.alignment import check_alignment
from changenet.segment.frames import GeoFrame, RasterInfo
from changenet.segment.maps import polygons, write_geotiff, write_polygons
from changenet.segment.rasters import Percentiles, Raster, read_info, read_raster, resolve_scaling

__all__ = [
    "GeoFrame",
    "Percentiles",
    "Raster",
    "RasterInfo",
    "check_alignment",
    "polygons",
    "read_info",
    "read_raster",
    "resolve_scaling",
    "write_geotiff",
    "write_polygons",
]
