"""Augmentation keys that the classify and the segment dataset share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fiducial.spec.knob import Section, knob


def _enable(what: str) -> bool:
    """The switch of one augmentation; some documents spell it ``enabled``."""
    switch: bool = knob(True, f"Switch {what} on.", aliases=("enabled",), automl=True)
    return switch


def _probability(what: str) -> float:
    """How often one augmentation happens."""
    chance: float = knob(0.5, f"Probability of {what}.", ge=0, usual=(0, 1), automl=True)
    return chance


Angles = Annotated[list[float], Field(min_length=1)]
Factors = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class RandomFlip(Section):
    """Mirror both images of a pair."""

    vflip_probability: float = _probability("mirroring top to bottom")
    hflip_probability: float = _probability("mirroring left to right")
    enable: bool = _enable("random mirroring")


class RandomRotate(Section):
    """Rotate both images of a pair by one of a few angles."""

    rotate_probability: float = _probability("a rotation")
    angle_list: Angles = knob([90, 180, 270], "Angles to choose from, in degrees, counter-clockwise.")
    enable: bool = _enable("random rotation")


class RandomColor(Section):
    """Change colours."""

    brightness: float = knob(
        0.3, "Brightness is multiplied by 1 ± this, at most.", ge=0, usual=(0, 2), automl=True, math_cond="> 0.0"
    )
    contrast: float = knob(
        0.3, "Contrast is multiplied by 1 ± this, at most.", ge=0, usual=(0, 2), automl=True, math_cond="> 0.0"
    )
    saturation: float = knob(
        0.3, "Saturation is multiplied by 1 ± this, at most.", ge=0, usual=(0, 2), automl=True, math_cond="> 0.0"
    )
    hue: float = knob(
        0.3, "Hue is turned by at most this part of the colour circle.", ge=0, le=0.5, automl=True, math_cond="> 0.0"
    )
    enable: bool = _enable("random colour changes")
    color_probability: float = _probability("a colour change")


class ScaleRandomCrop(Section):
    """Enlarge both images and cut a window of the original size."""

    scale_range: Factors = knob([1, 1.2], "Smallest and largest factor.")
    enable: bool = _enable("enlarging and cropping")
