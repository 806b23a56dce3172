"""Shapes, noise and blur for drawing with numpy.

A shape is a signed distance ``(H, W)``, negative inside, in units of half a picture: coordinates run from -1 to 1, x to
the right and y down. Edges are therefore smooth at any sub-pixel position. Colours are RGB in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating[Any]]
RGB = tuple[float, float, float]

# 3 x 5 dots, one octal digit per row
_GLYPHS = {
    "0": 0o75557, "1": 0o26227, "2": 0o71747, "3": 0o71717, "4": 0o55711, "5": 0o74717, "6": 0o74757, "7": 0o71122,
    "8": 0o75757, "9": 0o75717, "C": 0o74447, "D": 0o65556, "Q": 0o75573, "R": 0o65655, "U": 0o55557, "L": 0o44447,
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The coordinates of a picture's pixels in some frame; ``pixel`` is the width of a pixel in that frame."""

    x: Field
    y: Field
    pixel: float

    @classmethod
    def of_size(cls, size: int) -> Grid:
        axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
        x, y = np.meshgrid(axis, axis)
        return cls(x, y, 2 / size)

    def moved(self, dx: float = 0.0, dy: float = 0.0, angle: float = 0.0) -> Grid:
        """The frame whose origin is at ``(dx, dy)`` of this one, turned by ``angle`` degrees."""
        cos, sin = np.float32(np.cos(np.radians(angle))), np.float32(np.sin(np.radians(angle)))
        x, y = self.x - np.float32(dx), self.y - np.float32(dy)
        return Grid(cos * x + sin * y, cos * y - sin * x, self.pixel)

    def box(self, x: float, y: float, half_width: float, half_height: float, corner: float = 0.0) -> Field:
        """Distance to a box around ``(x, y)`` whose corners have the radius ``corner``."""
        dx = np.abs(self.x - np.float32(x)) - np.float32(half_width - corner)
        dy = np.abs(self.y - np.float32(y)) - np.float32(half_height - corner)
        outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
        return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)

    def disc(self, x: float, y: float, radius: float) -> Field:
        return np.sqrt((self.x - np.float32(x)) ** 2 + (self.y - np.float32(y)) ** 2) - np.float32(radius)

    def cover(self, distance: Field) -> Field:
        """How much of each pixel a shape covers, 0..1."""
        return np.clip(0.5 - distance / np.float32(self.pixel), 0, 1)

    def text(self, text: str, x: float, y: float, height: float) -> Field:
        """Cover, 0..1, of ``text`` centred at ``(x, y)``."""
        dots = np.zeros((7, 4 * len(text) + 1), np.float32)  # an empty dot all round
        for i, char in enumerate(text):
            bits = np.array([int(b) for b in f"{_GLYPHS[char]:015b}"]).reshape(5, 3)
            dots[1:6, 4 * i + 1 : 4 * i + 4] = bits
        dot = height / 5
        return bilinear(dots, (self.x - x) / dot + dots.shape[1] / 2 - 0.5, (self.y - y) / dot + 3)


def bilinear(image: Field, x: Field, y: Field) -> Field:
    """``image`` ``(H, W)`` at pixel positions ``x``, ``y``, clamped to its edge."""
    x, y = np.clip(x, 0, image.shape[1] - 1.001), np.clip(y, 0, image.shape[0] - 1.001)
    left, top = x.astype(np.intp), y.astype(np.intp)
    fx, fy = x - left, y - top
    upper = image[top, left] * (1 - fx) + image[top, left + 1] * fx
    lower = image[top + 1, left] * (1 - fx) + image[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """A random ``(size, size)`` field of about unit deviation that changes over ``size / cells`` pixels."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def blur(image: Field, sigma: float) -> Field:
    """Gaussian blur of ``(H, W)`` or ``(H, W, C)``, ``sigma`` in pixels; edges are repeated."""
    if sigma < 0.05:
        return image
    radius = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        length = image.shape[axis]
        padding = [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)]
        padded = np.pad(image, padding, mode="edge")
        image = sum(k * padded.take(range(i, i + length), axis) for i, k in enumerate(kernel))
    return image


def save_png(path: Path, image: Field) -> None:
    """Write ``(H, W)`` or ``(H, W, 3)`` in 0..1 as 8-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)).save(path)
