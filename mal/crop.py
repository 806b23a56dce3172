"""Geometry of the crop around a box, and the pixels in it. No torch.

Boxes are corners ``(x0, y0, x1, y1)`` in pixels of the picture. A crop is the box, expanded on each side by a share of
half its side, and stretched to a square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Corners", "Crop", "crop_around", "stretched", "training_margins"]

Corners = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """Columns ``x0 … x1 - 1`` and rows ``y0 … y1 - 1``; any of them may lie outside the picture."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    def inside(self, width: int, height: int) -> Crop:
        """The part of it that lies in a picture of this size."""
        return Crop(max(0, self.x0), max(0, self.y0), min(width, self.x1), min(height, self.y1))

    def pixels(self, image: Pixels) -> Pixels:
        """What is seen in it, ``(height, width, 3)``. Beyond an edge the picture begins again at the opposite one.

        TAO-compat: a fixed colour would be a sharp edge that the colour affinities of training follow.
        """
        height, width = image.shape[:2]
        if self == self.inside(width, height):
            return image[self.y0 : self.y1, self.x0 : self.x1]
        rows, columns = np.arange(self.y0, self.y1) % height, np.arange(self.x0, self.x1) % width
        around: Pixels = image[rows[:, None], columns]
        return around

    def box_mask(self, box: Corners, width: int, height: int, *, wrapped: bool, size: int | None = None) -> Pixels:
        """1 where the box is, its last row and column included, ``(height, width)`` of the crop.

        ``size``: :func:`stretched` to a square of it. ``wrapped`` repeats the box beyond the edges of the picture, as
        :meth:`pixels` does (TAO's training); else there is nothing outside the picture.
        """
        x0, y0, x1, y1 = (int(corner) for corner in box)

        def covered(start: int, stop: int, size: int, low: int, high: int) -> NDArray[np.bool_]:
            place = np.arange(start, stop)
            if wrapped:
                place = place % size
            return (place >= max(low, 0)) & (place <= min(high, size - 1))

        rows = covered(self.y0, self.y1, height, y0, y1).astype(np.uint8)
        columns = covered(self.x0, self.x1, width, x0, x1).astype(np.uint8)
        if size is not None:  # all rows with the box in them are alike: one of them is stretched, and one column
            rows, columns = _resized(rows[:, None], 1, size)[:, 0], _resized(columns[None], size, 1)[0]
        return np.outer(rows, columns)


def crop_around(box: Corners, margins: Sequence[float]) -> Crop:
    """The crop around a box; ``margins`` (left, top, right, bottom) are shares of half its width and height."""
    x0, y0, x1, y1 = (float(corner) for corner in box)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    left, top, right, bottom = margins
    return Crop(
        math.floor(x - (x - x0) * (1 + left)),
        math.floor(y - (y - y0) * (1 + top)),
        math.ceil(x + (x1 - x) * (1 + right) + 1),
        math.ceil(y + (y1 - y) * (1 + bottom) + 1),
    )


def training_margins(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float, float]:
    """Random margins: each side between ``low`` and ``high``, shared out so that left and right, and top and bottom,
    grow at each other's expense: a random shift as well as a random size."""
    left, top, right, bottom = rng.random(4) * (high - low) + low
    x, y = rng.random(2)
    return float(left * x), float(top * y), float(right * (1 - x)), float(bottom * (1 - y))


def stretched(pixels: Pixels, size: int) -> Pixels:
    """Pixels as a square of ``size``: bicubic, smoothed where it becomes smaller. Also of masks, which stay 0 and 1."""
    return _resized(pixels, size, size)


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
