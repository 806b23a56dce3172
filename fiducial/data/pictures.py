"""Pictures as a program hands them over: files, PIL images, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fiducial.data.images import read_rgb, to_rgb
from fiducial.errors import DatasetError

__all__ = ["Picture", "as_rgb"]

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file, a PIL image, or a uint8 array ``(H, W, 3)`` RGB or ``(H, W)`` grey, 0..255."""


def as_rgb(picture: Picture) -> Image.Image:
    """A picture as 8-bit RGB. Raises: DatasetError when it cannot be read, or is an array of another kind."""
    if isinstance(picture, (str, Path)):
        return read_rgb(picture)
    if isinstance(picture, np.ndarray):
        is_picture = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not is_picture or not picture.size:
            found = f"{picture.dtype} array of shape {picture.shape}"
            raise DatasetError("image", found, "give uint8 (H, W, 3) RGB or (H, W) grey")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise DatasetError("image", f"{type(picture).__name__}", "give a path, a PIL image or a uint8 array")
    try:
        picture.load()
    except Exception as error:  # a file that Pillow has opened, and whose damage shows now
        raise DatasetError("image", f"an image that cannot be read ({error})", "copy or export it again") from error
    return to_rgb(picture)
