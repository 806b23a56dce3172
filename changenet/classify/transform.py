"""From the pictures of one pair to the two arrays that are compared.

Legend: L lights, h w one light's size, H W the composed size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from changenet.classify.rows import Layout
from fiducial.data.augment import ColorJitter, Geometry, blur, draw_crop
from fiducial.data.normalization import Normalization

if TYPE_CHECKING:
    from changenet.classify.config import ClassifyAugmentation

Pixels = npt.NDArray[np.uint8]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_SCHEMA_STD = (0.226, 0.226, 0.226)  # what the packaged schema shows for ImageNet's


def normalization(config: ClassifyAugmentation, backbone: str, *, clip: bool) -> Normalization:
    """The mean and std that the spec asks for.

    C-RADIO backbones were trained with CLIP's; TAO replaces ImageNet's defaults by them from 7.0.1 on: with
    ``radio_normalization: auto`` ``clip`` says whether.
    """
    mean, std = tuple(config.rgb_input_mean), tuple(config.rgb_input_std)
    configured = Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    at_default = _close(mean, IMAGENET[0]) and (_close(std, IMAGENET[1]) or _close(std, _SCHEMA_STD))
    if "radio" not in backbone or not at_default or config.radio_normalization == "as_configured":
        return configured
    return Normalization(*CLIP) if clip or config.radio_normalization == "clip" else configured


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) < 1e-4 for x, y in zip(a, b, strict=True))


def compose_lights(tiles: Sequence[Pixels], layout: Layout) -> Pixels:
    """``L`` tiles ``(h, w, 3)`` as one image ``(H, W, 3)``: stacked downwards, or row by row into the grid."""
    if layout.grid is None:
        return np.concatenate(list(tiles), axis=0)
    rows, columns = layout.grid
    lines = [np.concatenate(list(tiles[r * columns : (r + 1) * columns]), axis=1) for r in range(rows)]
    return np.concatenate(lines, axis=0)


@dataclass(frozen=True)
class PairChange:
    """What was drawn for one pair. Without ``blur`` or ``jitter`` the step is left out."""

    geometry: Geometry
    blur: float | None
    jitter: ColorJitter | None
    orders_apart: bool = False
    """Whether each tile orders the steps of the colours by itself."""

    def __call__(self, images: Sequence[Sequence[Image.Image]], rng: np.random.Generator) -> list[list[Image.Image]]:
        """The changed tiles of all images."""
        return [[self._tile(tile, rng) for tile in tiles] for tiles in images]

    def _tile(self, tile: Image.Image, rng: np.random.Generator) -> Image.Image:
        tile = self.geometry(tile)
        if self.blur is not None:
            tile = blur(tile, self.blur)
        if self.jitter is not None:
            tile = self.jitter(tile, [int(i) for i in rng.permutation(4)] if self.orders_apart else None)
        return tile

    def variant(self, width: int, height: int) -> str:
        """A name of the change, equal for equal results of mirrors and quarter turns."""
        geometry = self.geometry.variant(width, height)
        return geometry if self.blur is None and self.jitter is None else f"{geometry} {self.blur} {self.jitter}"


@dataclass(frozen=True)
class PairAugment:
    """The random changes of a training pair: one set of decisions for all lights of all its images."""

    config: ClassifyAugmentation
    compat_tao: bool = False

    def __call__(self, images: Sequence[Sequence[Image.Image]], rng: np.random.Generator) -> list[list[Image.Image]]:
        """Change the tiles of the test image and of its goldens alike.

        The order is: mirror, rotate, crop, blur, colours (the spec's keys of ``augmentation_config``).
        """
        return self.draw(rng, *images[0][0].size)(images, rng)

    def draw(self, rng: np.random.Generator, width: int, height: int) -> PairChange:
        """The decisions for a pair whose tiles have this size."""
        config, color = self.config, self.config.random_color
        flip, turn = config.random_flip, config.random_rotate
        # every decision is drawn, used or not, so that switching one off does not change the others
        u_h, u_v, u_r, u_c = rng.random(4)
        angle = turn.angle_list[int(rng.integers(len(turn.angle_list)))] if turn.angle_list else None
        crop = draw_crop(rng, width, height)
        geometry = Geometry(
            hflip=flip.enable and u_h < flip.hflip_probability,
            vflip=flip.enable and u_v < flip.vflip_probability,
            angle=angle if turn.enable and u_r < turn.rotate_probability else None,
            crop=crop if config.with_random_crop else None,
        )
        radius = float(rng.random())
        jitter = ColorJitter.draw(rng, (color.brightness, color.contrast, color.saturation, color.hue))
        # TAO-compat: colours change with probability 1 - p, and each image orders the four steps by itself
        chance = 1 - color.color_probability if self.compat_tao else color.color_probability
        recolor = color.enable and u_c < chance
        return PairChange(
            geometry, radius if config.with_random_blur else None, jitter if recolor else None, self.compat_tao
        )
