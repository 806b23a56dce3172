"""Pictures for a page: thumbnails as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["data_uri", "thumbnail"]


def data_uri(image: NDArray[np.uint8], *, max_side: int = 256) -> str:
    """``image`` (uint8 RGB, ``(H, W, 3)``) as a JPEG data URI, made smaller until its longer side fits."""
    buffer = io.BytesIO()
    thumbnail(image, max_side).save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def thumbnail(image: NDArray[np.uint8], max_side: int) -> Image.Image:
    """``image`` (uint8, ``(H, W, 3)`` or ``(H, W)``) as RGB, made smaller until its longer side fits."""
    picture = Image.fromarray(image).convert("RGB")
    picture.thumbnail((max_side, max_side))
    return picture
