"""Large images by a sliding window: where it goes, one window to train on, and the predictions put together again.

blend = Blend(num_classes, height, width)
for window in windows(height, width, tile=1024, overlap=128):
    done_ChW = blend.add(window, predict(cut(image, window)))  # rows that no later window reaches
rest_ChW = blend.finish()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blend", "Window", "blend", "cut", "draw_window", "windows"]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels. It may reach over the right and lower border of an image smaller than itself."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array with; what reaches over the border falls away."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def windows(height: int, width: int, tile: int, overlap: int) -> list[Window]:
    """Where a sliding window of ``tile`` pixels a side goes, row by row; neighbours share ``overlap`` pixels or more.

    The last ones are moved inwards to end with the image. A side shorter than ``tile`` gets one window, which reaches
    over the border (see :func:`cut`).

    Raises: ValueError unless ``0 <= overlap < tile`` and the image has pixels.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in 0 .. {tile - 1} for tiles of {tile}, got {overlap}")
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} × {width} pixels")
    return [
        Window(top, left, tile, tile)
        for top in _starts(height, tile, tile - overlap)
        for left in _starts(width, tile, tile - overlap)
    ]


def _starts(length: int, tile: int, step: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, step), last]


def draw_window(
    rng: np.random.Generator, height: int, width: int, tile: int, *, around: tuple[int, int] | None = None
) -> Window:
    """A square of ``tile`` pixels, drawn evenly from all that lie inside the image, or that also hold ``around``.

    ``around``: row and column of a pixel, such as a changed one, so that rare changes are seen often.
    """
    places = zip((height, width), around or (None, None), strict=True)
    top, left = (_draw_start(rng, length, tile, pixel) for length, pixel in places)
    return Window(top, left, tile, tile)


def _draw_start(rng: np.random.Generator, length: int, tile: int, pixel: int | None) -> int:
    first, last = 0, max(0, length - tile)
    if pixel is not None:
        first, last = max(first, pixel - tile + 1), min(last, pixel)
    return int(rng.integers(first, last + 1))


def cut(image: NDArray[np.generic], window: Window, *, fill: int | None = None) -> NDArray[np.generic]:
    """The window of ``image`` ``(H, W)`` or ``(H, W, C)``, always of the window's size.

    What reaches over the border mirrors the image (the border pixel itself is not repeated), or is ``fill``: give 255
    for a mask, so that loss and metrics ignore it.
    """
    part = image[window.slices]
    missing = (window.height - part.shape[0], window.width - part.shape[1])
    if missing == (0, 0):
        return part
    margins = [(0, n) for n in missing] + [(0, 0)] * (image.ndim - 2)
    if fill is not None:
        return np.pad(part, margins, constant_values=fill)
    return np.pad(part, margins, mode="reflect")


class Blend:
    """Overlapping predictions as one: their mean at each pixel, weighted by how far inside its window it lies.

    The weight is a raised cosine over each side, ``sin²(π (i + ½) / n)``: smooth, and zero nowhere. Windows must come
    row by row, as :func:`windows` lists them. What no later window can change is handed out at once, so memory is
    ``(num_channels + 1) × tile × width`` float32, whatever the height.
    """

    def __init__(self, num_channels: int, height: int, width: int) -> None:
        self._size = (height, width)
        self._top = 0  # image row of the first row held
        self._sum_ChW = np.zeros((num_channels, 0, width), dtype=np.float32)
        self._weight_hW = np.zeros((0, width), dtype=np.float32)

    def add(self, window: Window, values_Chw: NDArray[np.floating]) -> NDArray[np.float32]:
        """Take a window's probabilities or logits ``(C, window.height, window.width)``.

        Returns the finished rows ``(C, n, width)`` above the window, n often 0.
        Raises: ValueError for a wrong shape, or a window above rows already handed out.
        """
        expected = (len(self._sum_ChW), window.height, window.width)
        if values_Chw.shape != expected:
            raise ValueError(f"a window's values must be {expected}, got {values_Chw.shape}")
        if window.top < self._top:
            raise ValueError(f"windows must come row by row: row {window.top} after row {self._top}")
        height, width = self._size
        h, w = min(window.height, height - window.top), min(window.width, width - window.left)
        finished = self._release(window.top)
        self._reach(h)
        weight_hw = np.outer(_ramp(window.height)[:h], _ramp(window.width)[:w])
        columns = slice(window.left, window.left + w)
        self._sum_ChW[:, :h, columns] += weight_hw * values_Chw[:, :h, :w]
        self._weight_hW[:h, columns] += weight_hw
        return finished

    def finish(self) -> NDArray[np.float32]:
        """The rows not handed out yet. Raises: ValueError when windows are missing."""
        finished = self._release(self._top + self._weight_hW.shape[0])
        if self._top != self._size[0]:
            raise ValueError(f"the windows end at row {self._top} of {self._size[0]}")
        return finished

    def _release(self, top: int) -> NDArray[np.float32]:
        n = top - self._top
        weight_nW = self._weight_hW[:n]
        if weight_nW.shape[0] < n or not weight_nW.all():
            raise ValueError(f"no window covers all of the rows {self._top} .. {top - 1}")
        finished = self._sum_ChW[:, :n] / weight_nW
        self._sum_ChW, self._weight_hW, self._top = self._sum_ChW[:, n:], self._weight_hW[n:], top
        return finished

    def _reach(self, num_rows: int) -> None:
        """Hold at least ``num_rows`` rows."""
        more = num_rows - self._weight_hW.shape[0]
        if more > 0:
            self._sum_ChW = np.pad(self._sum_ChW, ((0, 0), (0, more), (0, 0)))
            self._weight_hW = np.pad(self._weight_hW, ((0, more), (0, 0)))


def blend(
    parts: Iterable[tuple[Window, NDArray[np.floating]]], num_channels: int, height: int, width: int
) -> NDArray[np.float32]:
    """All of it at once, ``(C, height, width)``: for images whose result fits into memory."""
    blending = Blend(num_channels, height, width)
    rows = [blending.add(window, values) for window, values in parts]
    return np.concatenate([*rows, blending.finish()], axis=1)


def _ramp(length: int) -> NDArray[np.float32]:
    return (np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2).astype(np.float32)
