"""Opening rasters that somebody else wrote.

GDAL reads whatever a file says it is, and follows the names in it to other files and over the network. So what a file
is, is decided here by its first bytes, and the one part of GDAL for that opens it; names in it that lead elsewhere are
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from changenet.segment.frames import load_rasterio, quiet
from changenet.segment.mosaics import sources_of
from changenet.segment.tiff import WARNINGS
from fiducial.data.files import HEAD, is_file, what_bytes_are, why_unreadable
from fiducial.data.images import MAX_PIXELS
from fiducial.errors import DatasetError, UserError

__all__ = ["RASTERS", "TIFF", "is_raster", "opened"]

TIFF = (".tif", ".tiff")
RASTERS = (*TIFF, ".jp2", ".vrt")
"""Suffixes of what rasterio reads."""
_DRIVERS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GTiff"),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xffO\xffQ"), "JP2OpenJPEG"),
    b"\x89PNG\r\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
}
"""How a file begins: GDAL's driver for it."""
_SIDECARS = (".ovr", ".msk")
_SPARSE = 256
"""Pixels for each byte of a file above which one of more than :data:`MAX_PIXELS` is taken for a decompression bomb."""


def is_raster(path: Path) -> bool:
    """Whether the name of a file is one of a raster."""
    return path.suffix.lower() in RASTERS


@contextmanager
def opened(path: Path, *, root: Path | None = None) -> Iterator[Any]:
    """The rasterio dataset at ``path``; a VRT may name files below ``root`` and below its own folder.

    Raises: DatasetError naming the file for whatever goes wrong, within too; MissingDependencyError without rasterio.
    """
    rasterio = load_rasterio()
    driver, size = _driver(path), path.stat().st_size
    if driver == "VRT":
        size += sum(_checked(source, source.stat().st_mtime_ns) for source in sources_of(path, root))
    try:
        with WARNINGS, quiet(rasterio):
            dataset = rasterio.open(str(path.absolute()), driver=driver)
        with dataset as file:
            if file.width * file.height > max(MAX_PIXELS, _SPARSE * size):
                found = f"{file.width:,} × {file.height:,} pixels in {size:,} bytes"
                raise DatasetError(str(path), found, "check how it was written, or cut it into tiles")
            if "OVERVIEW_FILE" in file.tags(ns="OVERVIEWS"):
                found = f"its overviews are in {file.tags(ns='OVERVIEWS')['OVERVIEW_FILE']}"
                raise DatasetError(str(path), found, "copy it without them: `gdal_translate -co COPY_SRC_OVERVIEWS=NO`")
            yield file
    except UserError:
        raise
    except MemoryError as error:
        raise DatasetError(str(path), "more pixels than memory holds", "cut it into tiles") from error
    except Exception as error:  # whatever GDAL stumbles over in damaged bytes
        told = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise DatasetError(str(path), f"a raster that cannot be read ({told})", "copy or export it again") from error


@lru_cache(maxsize=65536)
def _checked(source: Path, changed: int) -> int:
    """The bytes of a raster that a VRT names, once it has been opened on its own."""
    with opened(source):
        return source.stat().st_size


def _driver(path: Path) -> str:
    if wrong := why_unreadable(path):
        raise DatasetError(str(path), *wrong)
    for beside in (path.with_name(path.name + suffix) for suffix in _SIDECARS):
        if is_file(beside) and _DRIVERS.get(_kind(_head(beside))) != "GTiff":
            raise DatasetError(str(beside), "overviews or a mask that are no TIFF", "remove it")
    if path.suffix.lower() == ".vrt":
        return "VRT"
    head = _head(path)
    if driver := _DRIVERS.get(_kind(head)):
        return driver
    found, fix = what_bytes_are(head) or ("something else", "name it after its format, or convert it to TIFF")
    raise DatasetError(str(path), f"not a raster but {found}", fix)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _kind(head: bytes) -> bytes:
    return next((begin for begin in _DRIVERS if head.startswith(begin)), b"")
