"""From a picture to what the network sees: of evaluation, and the random changes of training.

Sizes are (height, width); pictures are 8-bit RGB PIL images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fiducial.data.augment import ColorJitter
from fiducial.data.normalization import Normalization

__all__ = ["Blur", "EvalTransform", "TrainTransform", "draw_window", "erase"]

Size = tuple[int, int]
Box = tuple[int, int, int, int]

_LARGER = 1.14
"""A picture is resized to this multiple of the network's input, and its middle is taken."""
_RATIO = (3 / 4, 4 / 3)
_WINDOW_TRIES, _ERASE_TRIES = 10, 100
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.4), (0.3, 1 / 0.3)
_BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class EvalTransform:
    """Resize to 1.14 times ``size``, whatever the aspect, and take the middle: float32 ``(3, H, W)``, normalised."""

    size: Size
    normalize: Normalization

    def __call__(self, image: Image.Image) -> Tensor:
        return self.middle(np.asarray(image.resize(self.larger[::-1], _BILINEAR)))

    @property
    def larger(self) -> Size:
        """What a picture is resized to, bilinear."""
        return int(_LARGER * self.size[0]), int(_LARGER * self.size[1])

    def middle(self, pixels: NDArray[np.uint8]) -> Tensor:
        """What the network sees of a resized picture ``(H, W, 3)``."""
        (height, width), (tall, wide) = self.size, self.larger
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        return self.normalize(pixels[top : top + height, left : left + width])


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with a ``kernel`` (width, height), odd, and a standard deviation between the ends of ``sigma``."""

    kernel: tuple[int, int] = (15, 15)
    sigma: tuple[float, float] = (0.3, 0.7)

    def __call__(self, pixels_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from torchvision.transforms.v2 import functional as f  # type: ignore[import-untyped]

        sigma = float(rng.uniform(*self.sigma))
        # what lies beyond is below the last bit of 8
        kernel = [min(side, 2 * math.ceil(4 * sigma) + 1) for side in self.kernel]
        x = torch.from_numpy(np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1)))
        blurred: Tensor = f.gaussian_blur(x, kernel, [sigma, sigma])
        return blurred.permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class TrainTransform:
    """The random changes of training, in this order: a window (``scale``: its share of the area), mirrored with
    probability ``flip``, turned by 0 to 180 degrees with ``rotation``, other colours, blur, and with probability
    ``erased`` a rectangle replaced.

    TAO-compat: the rectangle is filled with ``mean`` after normalisation; a clean design would fill it with 0, which is
    the mean there.
    """

    size: Size
    normalize: Normalization
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rotation: bool = False
    colors: tuple[float, float, float, float] | None = (0.5, 0.3, 0.1, 0.1)
    blur: Blur | None = Blur()
    erased: float = 0.5

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """float32 ``(3, H, W)``, normalised; everything random comes from ``rng``."""
        window = draw_window(rng, image.width, image.height, self.scale)
        image = image.crop(window).resize((self.size[1], self.size[0]), _BILINEAR)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            image = image.rotate(float(rng.uniform(0, 180)), Image.Resampling.NEAREST)
        if self.colors is not None:
            image = ColorJitter.draw(rng, self.colors)(image)
        pixels = np.asarray(image)
        if self.blur is not None:
            pixels = self.blur(pixels, rng)
        x = self.normalize(pixels)
        return erase(x, rng, self.normalize.mean) if rng.random() < self.erased else x


def draw_window(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """A window of a share of the area within ``scale`` and an aspect of 3/4 to 4/3; PIL's (left, upper, right, lower).

    Where ten draws do not fit, the largest window in the middle whose aspect is in this range.
    """
    for _ in range(_WINDOW_TRIES):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * _RATIO[1]))), min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def erase(x_3HW: Tensor, rng: np.random.Generator, fill: tuple[float, float, float]) -> Tensor:
    """A rectangle of 2 to 40 percent of the area becomes ``fill``, in place (Zhong et al. 2017, arXiv:1708.04896)."""
    height, width = x_3HW.shape[1:]
    for _ in range(_ERASE_TRIES):
        area, ratio = rng.uniform(*_ERASED_AREA) * height * width, rng.uniform(*_ERASED_RATIO)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            x_3HW[:, top : top + h, left : left + w] = torch.tensor(fill)[:, None, None]
            break
    return x_3HW
