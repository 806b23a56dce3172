"""From the decoded images of a pair to what the network sees: size, normalisation, random changes.

Legend: S side of the network's input in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from changenet.segment.counts import IGNORED
from changenet.segment.reading import Scene
from fiducial.data.augment import ColorJitter, Geometry, blur, draw_crop
from fiducial.data.normalization import Normalization

if TYPE_CHECKING:
    from changenet.segment.config import SegmentAugmentation

__all__ = ["TAO_NORMALIZATION", "SceneAugment"]

_BICUBIC, _NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
TAO_NORMALIZATION = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""What TAO normalises with outside of training, whatever the spec says."""


@dataclass(frozen=True)
class SceneAugment:
    """The random changes of a training pair. Geometry is shared by both images and the mask; colours are each image's.

    The order is TAO's: mirror, rotate, crop, enlarge and crop, blur, colours (the keys of
    ``dataset.segment.augmentation``).
    """

    config: SegmentAugmentation = field(repr=False)
    compat_tao: bool = False

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """A changed scene of the same size, which must be square and have a mask."""
        config, side = self.config, scene.before.shape[0]
        flip, turn, color, zoom = (
            config.random_flip,
            config.random_rotate,
            config.random_color,
            config.with_scale_random_crop,
        )
        # every decision is drawn, used or not, so that switching one off does not change the others
        u_h, u_v, u_r, u_left, u_top, u_scale, radius = rng.random(7)
        u_color = rng.random(2)
        angle = turn.angle_list[int(rng.integers(len(turn.angle_list)))]
        crop = draw_crop(rng, side, side)
        amounts = (color.brightness, color.contrast, color.saturation, color.hue)
        jitters = [ColorJitter.draw(rng, amounts) for _ in range(2)]
        geometry = Geometry(
            hflip=flip.enable and u_h < flip.hflip_probability,
            vflip=flip.enable and u_v < flip.vflip_probability,
            angle=angle if turn.enable and u_r < turn.rotate_probability else None,
            crop=crop if config.with_random_crop else None,
        )
        low, high = zoom.scale_range
        large = round(side * (low + float(u_scale) * (high - low))) if zoom.enable else side
        # TAO-compat: every image changes its colours, whatever color_probability says
        recolor = [color.enable and (self.compat_tao or float(u) < color.color_probability) for u in u_color]

        def place(image: Image.Image, resample: Image.Resampling, fill: int) -> Image.Image:
            image = geometry(image, resample)
            return _zoomed(image, large, (float(u_left), float(u_top)), resample, fill)

        pictures = []
        for pixels, jitter, change in zip((scene.before, scene.after), jitters, recolor, strict=True):
            image = place(Image.fromarray(pixels), _BICUBIC, 0)
            if config.with_random_blur:
                image = blur(image, float(radius))
            pictures.append(np.asarray(jitter(image) if change else image))
        label = None
        if scene.label is not None:
            label = np.asarray(place(Image.fromarray(scene.label), _NEAREST, IGNORED))
        return Scene(pictures[0], pictures[1], label)


def _zoomed(
    image: Image.Image, large: int, at: tuple[float, float], resample: Image.Resampling, fill: int
) -> Image.Image:
    """The square image resized to ``large`` pixels, and a window of its old size cut at ``at`` (0..1 of what is free).

    A smaller image is placed on ``fill``.
    """
    side = image.width
    if large == side:
        return image
    image = image.resize((large, large), resample)
    left, top = (round(u * abs(large - side)) for u in at)
    if large > side:
        return image.crop((left, top, left + side, top + side))
    canvas = Image.new(image.mode, (side, side), (fill,) * 3 if image.mode == "RGB" else fill)
    canvas.paste(image, (left, top))
    return canvas
