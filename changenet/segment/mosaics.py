"""VRT files: XML that names the rasters it is made of. Which those are, before anything opens them. No rasterio."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

from fiducial.data.files import is_file
from fiducial.errors import DatasetError

__all__ = ["is_unscaled", "sources_of"]

_MAX_BYTES = 1 << 26
_PLAIN = """
    VRTDataset SRS GeoTransform GCPList GCP Metadata MDI BlockXSize BlockYSize OverviewList VRTRasterBand Description
    UnitType Offset Scale CategoryNames Category ColorInterp ColorTable Entry NoDataValue HideNoDataValue MaskBand
    Histograms HistItem HistMin HistMax BucketCount IncludeOutOfRange Approximate HistCounts
    SimpleSource ComplexSource AveragedSource SourceFilename SourceBand SourceProperties SrcRect DstRect NODATA
    UseMaskBand ScaleOffset ScaleRatio ColorTableComponent Exponent SrcMin SrcMax DstMin DstMax Clamp LUT
"""
"""Elements of a mosaic of plain rasters. Others compute, open raw bytes, or name files in ways of their own."""
_RECTANGLE = ("xOff", "yOff", "xSize", "ySize")
_ODD_ATTRIBUTES = ("subclass", "sourcefilename", "sourcedataset")
_FIX = "make a GeoTIFF of it: `gdal_translate in.vrt out.tif`, which you should only do if you trust it"


def sources_of(path: Path, root: Path | None) -> tuple[Path, ...]:
    """The files that a VRT names, each below its folder or below ``root``.

    Raises: DatasetError for other names, and for a VRT that is more than a mosaic of plain rasters.
    """
    found = path.stat()
    return _sources(path, root, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _sources(path: Path, root: Path | None, changed: int, size: int) -> tuple[Path, ...]:
    allowed = [folder.resolve() for folder in (path.parent, root) if folder]
    sources = dict.fromkeys(_named(path, _parsed(path, size)))
    for name in sources:
        source = Path(name)
        if not is_file(source) or source.suffix.lower() == ".vrt":
            found = f"made of {name}, which is no image file"
            raise DatasetError(str(path), found, "name TIFF, JPEG 2000, PNG or JPEG files on this machine")
        if not any(source.resolve().is_relative_to(folder) for folder in allowed):
            found = f"made of {name}, which lies outside of {allowed[-1]}"
            raise DatasetError(str(path), found, "keep the files of a data set in one folder")
    return tuple(map(Path, sources))


def is_unscaled(path: Path) -> bool:
    """Whether a VRT takes each pixel from one pixel of its files, so that a part of it is the same as of the whole."""
    found = path.stat()
    return _is_unscaled(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _is_unscaled(path: Path, changed: int, size: int) -> bool:
    sources = [element for element in _parsed(path, size).iter() if element.find("SourceFilename") is not None]
    return all(map(_on_the_grid, sources))


def _on_the_grid(source: ElementTree.Element) -> bool:
    places = [source.findall(tag) for tag in ("SrcRect", "DstRect")]
    if [len(found) for found in places] != [1, 1]:
        return False
    try:
        inside, target = ([float(place[0].attrib[key]) for key in _RECTANGLE] for place in places)
    except (KeyError, ValueError):
        return False
    return inside[2:] == target[2:] and all(number.is_integer() for number in (*inside, *target))


def _parsed(path: Path, size: int) -> ElementTree.Element:
    """The XML, in the one reading that GDAL and Python's parser share: no comments, entities or other encodings."""
    if size > _MAX_BYTES:
        raise DatasetError(str(path), f"a VRT of {size:,} bytes", _FIX)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "<!" in text or "<?" in text[1:]:
            raise DatasetError(str(path), "a VRT with comments, entities or instructions", _FIX)
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(str(path), f"a VRT that cannot be read ({error})", "write it again") from None
    for element in tree.iter():
        odd = next((name for name in element.attrib if name.lower() in _ODD_ATTRIBUTES), None)
        if odd or element.tag not in _PLAIN.split():
            found = f"a VRT with {odd or element.tag}: more than a mosaic of plain rasters"
            raise DatasetError(str(path), found, _FIX)
    return tree


def _named(path: Path, tree: ElementTree.Element) -> Iterator[str]:
    for element in tree.iter("SourceFilename"):
        name = element.text or ""
        if "://" in name or name.startswith("/vsi"):
            found = f"made of {name.partition('?')[0]}, which is not on this machine"
            raise DatasetError(str(path), found, "fetch it first")
        relative = {key.lower(): value for key, value in element.items()}.get("relativetovrt", "0")
        if relative not in ("0", "1"):
            raise DatasetError(str(path), f"a VRT with relativeToVRT {relative!r}", "write 0 or 1")
        yield os.path.join(path.parent, name) if relative == "1" else name
