"""JPEG files decoded by simplejpeg: the library that Pillow decodes with, libjpeg-turbo, without Pillow's copies.

Its pixels are Pillow's, bit for bit: both call the same slow, exact transform. That is relied on for the kinds of file
that it was tested for, where both have a version 3 of the library. Whatever is odd about a file, Pillow decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, features

__all__ = ["decoded"]

_VERSION = "3."
"""Of libjpeg-turbo. Earlier ones enlarge the colours of some files in another way."""
_SAMPLINGS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1))
"""Columns and rows of brightness for each of colour."""


def decoded(image: ImageFile.ImageFile, pixels: Literal["RGB", "RGBX"]) -> NDArray[np.uint8] | None:
    """The pixels ``(H, W, 3)``, or 4 whose last means nothing, of a file that Pillow opened and has not decoded.

    They are those of ``image.convert("RGB")``. None where that is not sure, or the file is damaged: let Pillow decode.
    """
    decode = _decoder()
    if decode is None or image.fp is None or not _is_plain(image):
        return None
    image.fp.seek(0)
    try:
        found: NDArray[np.uint8] = decode(image.fp.read(), colorspace=pixels)
    except ValueError:  # damaged, a warning of the library suffices: Pillow knows what to say, or decodes it
        return None
    return found if found.shape[:2] == (image.height, image.width) else None


def _is_plain(image: Any) -> bool:
    if image.format != "JPEG" or image.bits != 8 or "adobe" in image.info:
        return False
    first, *others = [(columns, rows) for _, columns, rows, _ in image.layer]
    if image.mode == "L":
        return not others
    return image.mode == "RGB" and first in _SAMPLINGS and others == [(1, 1), (1, 1)]


@lru_cache(maxsize=1)
def _decoder() -> Callable[..., Any] | None:
    if not (features.version("libjpeg_turbo") or "").startswith(_VERSION):
        return None
    try:
        from simplejpeg import decode_jpeg
    except ImportError:  # there are machines without a wheel of it
        return None
    decode: Callable[..., Any] = decode_jpeg
    return decode
