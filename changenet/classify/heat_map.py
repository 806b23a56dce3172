"""Where a part looks different from its golden, for the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fiducial.data.registration import apply_shift, shift_between
from fiducial.report import thumbnail

__all__ = ["difference_heat_map"]

_LEAST_RANGE = 48.0  # grey levels that count as full heat at least, so that noise alone stays cold


def difference_heat_map(
    test: NDArray[np.uint8], golden: NDArray[np.uint8], *, max_side: int = 256
) -> NDArray[np.uint8]:
    """Where ``test`` differs from ``golden`` (both uint8 RGB ``(H, W, 3)``), drawn over the test image in grey.

    The golden is first moved onto the test (by at most an eighth of the shorter side) and made as bright; their
    difference is smoothed and freed from what all of the image has in common (noise).
    Returns uint8 RGB whose longer side is at most ``max_side``.
    """
    from matplotlib import colormaps

    small = thumbnail(test, max_side)
    test_HW3 = np.asarray(small, dtype=np.float64)
    golden_HW3 = np.asarray(Image.fromarray(golden).convert("RGB").resize(small.size))
    gain_3 = np.median(test_HW3, axis=(0, 1)) / np.median(golden_HW3, axis=(0, 1)).clip(1)
    shift = shift_between(test_HW3.mean(axis=2), golden_HW3.mean(axis=2), max_shift=min(small.size) / 8)
    difference_HW = np.abs(test_HW3 - gain_3 * apply_shift(golden_HW3, shift)).mean(axis=2)
    smooth = Image.fromarray(difference_HW.astype(np.float32)).convert("L")
    smooth_HW = np.asarray(smooth.filter(ImageFilter.GaussianBlur(max(small.size) / 64)), dtype=np.float64)
    heat_HW = np.clip(smooth_HW - np.median(smooth_HW), 0, None)
    heat_HW = heat_HW / max(float(heat_HW.max()), _LEAST_RANGE)
    colour_HW3 = 255 * colormaps["inferno"](heat_HW)[..., :3]
    grey_HW3 = np.repeat(test_HW3.mean(axis=2, keepdims=True), 3, axis=2) * 0.6
    opacity_HW1 = np.clip(1.5 * heat_HW, 0, 0.9)[..., None]
    return np.asarray(opacity_HW1 * colour_HW3 + (1 - opacity_HW1) * grey_HW3).round().astype(np.uint8)
