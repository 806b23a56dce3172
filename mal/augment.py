"""What training does to a crop: half of them are mirrored, and the student sees other colours than the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fiducial.data.augment import ColorJitter, blur

__all__ = ["BoxAugment"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class BoxAugment:
    """Probabilities, and the amounts of brightness, contrast, saturation and hue."""

    mirrored: float = 0.5
    jittered: float = 0.5
    amounts: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    blurred: float = 0.5
    radius: tuple[float, float] = (0.1, 2.0)

    def mirror(self, rng: np.random.Generator, *arrays: Pixels) -> tuple[Pixels, ...]:
        """All of the arrays mirrored left to right, or none."""
        return tuple(array[:, ::-1] for array in arrays) if rng.random() < self.mirrored else arrays

    def recolour(self, rng: np.random.Generator, pixels: Pixels) -> Pixels:
        """Other colours, perhaps grey, perhaps blurred, or ``pixels`` themselves; ``(H, W, 3)``."""
        image = given = Image.fromarray(np.ascontiguousarray(pixels))
        if rng.random() < self.jittered:
            image = ColorJitter.draw(rng, self.amounts)(image)
        if rng.random() < self.grey:
            image = image.convert("L").convert("RGB")
        if rng.random() < self.blurred:
            image = blur(image, float(rng.uniform(*self.radius)))
        return pixels if image is given else np.asarray(image)
