"""What a TIFF says of itself before its pixels are read. Needs no rasterio."""

from __future__ import annotations

import warnings
from pathlib import Path
from threading import Lock

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fiducial.errors import DatasetError

__all__ = ["BITS_PER_SAMPLE", "GEO_TAGS", "PHOTOMETRIC", "WARNINGS", "WHITE_IS_ZERO", "directories", "missing_bytes"]

BITS_PER_SAMPLE = 258
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
GEO_TAGS = (33550, 33922, 34264, 34735)
"""GeoTIFF: pixel scale, tie points, transformation, keys."""
WARNINGS = Lock()
"""To be held by a thread that changes which warnings are shown: that is one setting of the whole process."""
_PLACES = ((273, 279), (324, 325))  # where strips, or tiles, begin, and how many bytes each has
_MAX_DIRECTORIES = 256
_BIG = 43


def directories(path: Path) -> list[ImageFileDirectory_v2]:
    """The directories of a file: the image's, then those of overviews and masks.

    Raises: DatasetError for one that cannot be read.
    """
    found: dict[int, ImageFileDirectory_v2] = {}
    try:
        with path.open("rb") as file, WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says of odd tags
            header = file.read(8)
            header += file.read(8) if _BIG in header[2:4] else b""
            place = ImageFileDirectory_v2(header).next
            while place and place not in found and len(found) < _MAX_DIRECTORIES:
                found[place] = directory = ImageFileDirectory_v2(header)
                file.seek(place)
                directory.load(file)
                if not len(directory):
                    raise ValueError("a directory that is cut off")
                place = directory.next
    except Exception as error:  # whatever Pillow stumbles over in damaged bytes
        told = f"a damaged TIFF ({' '.join(str(error).split()) or type(error).__name__})"
        raise DatasetError(str(path), told, "copy or export it again") from error
    return list(found.values())


def missing_bytes(path: Path) -> int:
    """How many bytes beyond its end the strips and tiles of a file reach; 0 for other formats, whatever it is called.

    Raises: DatasetError as :func:`directories`.
    """
    with path.open("rb") as file:
        if file.read(2) not in (b"II", b"MM"):
            return 0
    size = path.stat().st_size
    furthest = size
    for directory in directories(path):
        for at, lengths in _PLACES:
            begin, length = (np.atleast_1d(np.asarray(directory.get(tag, ()), np.float64)) for tag in (at, lengths))
            if len(begin) and len(begin) == len(length):
                furthest = max(furthest, int((begin + length).max()))
    return furthest - size
