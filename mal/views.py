"""Pictures of one object for a report: close up, with a mask, and its place in the whole picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mal.crop import Corners

__all__ = ["View", "close_up", "whereabouts"]

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SIDE = 220
"""Of the pictures, in pixels."""
_AROUND = 0.6
"""How much is seen beside a box: this share of half its longer side."""
_MASK = (240, 228, 66)
_BOX = (86, 180, 233)
"""Told apart with any kind of colour vision (Okabe and Ito 2008)."""
_TINT = 0.3
_LINE = 2


@dataclass(frozen=True)
class View:
    """The square part of a picture around a box, moved into the picture where it reaches beyond."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def around(cls, box: Corners, width: int, height: int) -> View:
        """``box`` in a picture of this size."""
        x0, y0, x1, y1 = box
        side = round(max(x1 - x0, y1 - y0) * (1 + _AROUND)) + 2
        w, h = min(side, width), min(side, height)
        x, y = round((x0 + x1 - w) / 2), round((y0 + y1 - h) / 2)
        return cls(min(max(x, 0), width - w), min(max(y, 0), height - h), w, h)

    @property
    def zoom(self) -> float:
        """Pixels of the shown picture for one of the file."""
        return SIDE / max(self.width, self.height)

    def cut(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        return pixels[self.y : self.y + self.height, self.x : self.x + self.width]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        return max(1, round(self.width * self.zoom)), max(1, round(self.height * self.zoom))


def close_up(pixels: Rgb, view: View, box: Corners, mask: Mask | None = None) -> Rgb:
    """The object in its box, the mask tinted and outlined. ``mask``: of the whole picture."""
    shown = np.asarray(Image.fromarray(np.ascontiguousarray(view.cut(pixels))).resize(view.size), float)
    if mask is not None:
        enlarged = Image.fromarray(np.ascontiguousarray(view.cut(mask)).astype(np.uint8) * 255)
        inside = np.asarray(enlarged.resize(view.size, Image.Resampling.NEAREST)) > 0
        tinted = np.where(inside[..., None], (1 - _TINT) * shown + _TINT * np.array(_MASK), shown)
        shown = np.where(_rim(inside)[..., None], np.array(_MASK, float), tinted)
    canvas = Image.fromarray(shown.round().astype(np.uint8))
    moved = [(corner - start) * view.zoom for corner, start in zip(box, (view.x, view.y) * 2, strict=True)]
    _frame(canvas, moved, width=1)
    return np.asarray(canvas)


def whereabouts(pixels: Rgb, box: Corners) -> Rgb:
    """The whole picture, small, with the box."""
    canvas = Image.fromarray(pixels)
    canvas.thumbnail((SIDE, SIDE))
    zoom = canvas.width / pixels.shape[1], canvas.height / pixels.shape[0]
    _frame(canvas, [corner * zoom[i % 2] for i, corner in enumerate(box)], width=_LINE)
    return np.asarray(canvas)


def _rim(mask: Mask) -> Mask:
    """The pixels of a mask that are near its outside; the edge of the picture is no outside."""
    padded = np.pad(mask, _LINE, mode="edge")
    height, width = mask.shape
    inner = mask.copy()
    for step in range(1, _LINE + 1):
        for x, y in ((step, 0), (-step, 0), (0, step), (0, -step)):
            inner &= padded[_LINE + y : _LINE + y + height, _LINE + x : _LINE + x + width]
    return mask & ~inner


def _frame(canvas: Image.Image, box: list[float], *, width: int) -> None:
    x0, x1 = (min(max(round(corner), 0), canvas.width - 1) for corner in box[::2])
    y0, y1 = (min(max(round(corner), 0), canvas.height - 1) for corner in box[1::2])
    ImageDraw.Draw(canvas).rectangle((x0, y0, x1, y1), outline=_BOX, width=width)
