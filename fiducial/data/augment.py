"""Random changes of training images that share one set of decisions: drawn once, applied to any number of images.

Every draw comes from the generator that is passed in. Images are 8-bit RGB PIL images; probabilities and factors are
the spec's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["ColorJitter", "Crop", "Geometry", "blur", "draw_crop"]

CROP_AREA = (0.8, 1.2)
"""Share of the area that a random crop covers; shares above 1 do not fit a square image and are drawn again."""
_CROP_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A square window in pixels."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """PIL's (left, upper, right, lower)."""
        return self.left, self.top, self.left + self.side, self.top + self.side


def draw_crop(rng: np.random.Generator, width: int, height: int) -> Crop | None:
    """A square window of 0.8 to 1.2 of the area, tried ten times; then the largest central square.

    None when that is the whole image.
    """
    for _ in range(_CROP_TRIES):
        side = round(math.sqrt(width * height * rng.uniform(*CROP_AREA)))
        if 0 < side <= min(width, height):
            left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
            return Crop(left, top, side)
    if width == height:
        return None
    side = min(width, height)
    return Crop((width - side) // 2, (height - side) // 2, side)


@dataclass(frozen=True)
class Geometry:
    """Mirroring, rotation and cropping, in this order; the size stays."""

    hflip: bool = False
    vflip: bool = False
    angle: float | None = None
    crop: Crop | None = None

    def __call__(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        """The changed image. Rotation takes the nearest pixel and fills with 0; ``resample`` is for the crop."""
        size = image.size
        if self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.vflip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.angle is not None:
            image = image.rotate(self.angle, Image.Resampling.NEAREST, expand=False)
        if self.crop is not None:
            image = image.crop(self.crop.box).resize(size, resample)  # resize(box=) would look past its edge
        return image

    def variant(self, width: int, height: int) -> str:
        """A name of what an image of this size becomes; equal for equal results of mirrors and quarter turns."""
        turns_exactly = self.angle is None or (self.angle % 90 == 0 and width == height)
        if self.crop is not None or not turns_exactly:
            return repr(self)
        corners = Image.frombytes("L", (2, 2), bytes(range(4)))
        return self(corners).tobytes().hex()


def blur(image: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur; ``radius`` is the standard deviation in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation (factors) and hue (a shift, -0.5 to 0.5 of the circle), in a drawn order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...] = (0, 1, 2, 3)

    @classmethod
    def draw(cls, rng: np.random.Generator, amounts: Sequence[float]) -> ColorJitter:
        """Factors from ``[max(0, 1 - x), 1 + x]`` for the first three amounts, the hue from ``[-x, x]``."""
        brightness, contrast, saturation = (float(rng.uniform(max(0.0, 1 - x), 1 + x)) for x in amounts[:3])
        hue = float(rng.uniform(-amounts[3], amounts[3]))
        return cls(brightness, contrast, saturation, hue, tuple(int(i) for i in rng.permutation(4)))

    def __call__(self, image: Image.Image, order: Sequence[int] | None = None) -> Image.Image:
        """The changed image; ``order`` replaces the drawn order. Steps that would change nothing are left out."""
        from torchvision.transforms import functional as f  # type: ignore[import-untyped]

        steps = (
            (f.adjust_brightness, self.brightness, 1.0),
            (f.adjust_contrast, self.contrast, 1.0),
            (f.adjust_saturation, self.saturation, 1.0),
            (f.adjust_hue, self.hue, 0.0),
        )
        for index in order or self.order:
            adjust, value, neutral = steps[index]
            image = image if value == neutral else adjust(image, value)
        return image
