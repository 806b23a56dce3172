"""Masks and pictures as files: lossless class masks, probabilities, TAO's picture strip and overlays for people."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from changenet.segment.counts import IGNORED
from fiducial.data.images import open_image

__all__ = [
    "LANDSCD_PALETTE",
    "OVERLAY_COLOURS",
    "colour_mask",
    "output_names",
    "overlay",
    "palette",
    "read_probability",
    "strip",
    "write_mask",
    "write_picture",
    "write_probability",
]

Colour = tuple[int, int, int]
Rgb = NDArray[np.uint8]

LANDSCD_PALETTE: tuple[Colour, ...] = (
    (255, 255, 255),
    (255, 165, 0),
    (230, 30, 100),
    (70, 140, 0),
    (218, 112, 214),
    (0, 170, 240),
    (127, 235, 170),
    (230, 80, 0),
    (205, 220, 57),
    (218, 165, 32),
)
"""TAO's colours of the ten LandSCD classes."""

BINARY_PALETTE: tuple[Colour, ...] = ((0, 0, 0), (255, 255, 255))

OVERLAY_COLOURS: Mapping[str, Colour] = {
    "found": (240, 228, 66),
    "missed": (213, 94, 0),
    "false": (86, 180, 233),
    "other class": (204, 121, 167),
}
"""Told apart with any kind of colour vision (Okabe and Ito 2008), and unlike fields, roads and roofs."""

_SEPARATOR = 10  # black pixels between the pictures of a strip, as in TAO
_TINT = 0.6
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def palette(
    num_classes: int, *, color_map: Mapping[str, Sequence[int]] | None = None, data_name: str = ""
) -> list[Colour]:
    """A colour for each class: of ``color_map`` (class number as text to RGB), of LandSCD, or made up.

    Two classes are black and white. More begin with white and go round the colour circle by the golden angle, the same
    on every run (TAO draws them at random). Raises: ValueError when ``color_map`` has other classes.
    """
    if color_map:
        if sorted(map(int, color_map)) != list(range(num_classes)):
            raise ValueError(f"color_map must name the classes 0 .. {num_classes - 1}, got {', '.join(color_map)}")
        colours = {int(name): tuple(int(v) for v in colour) for name, colour in color_map.items()}
        return [(r, g, b) for r, g, b in (colours[k] for k in range(num_classes))]
    if data_name == "LandSCD" and num_classes <= len(LANDSCD_PALETTE):
        return list(LANDSCD_PALETTE[:num_classes])
    if num_classes == 2:
        return list(BINARY_PALETTE)
    return [(255, 255, 255), *(_hue(k) for k in range(num_classes - 1))]


def _hue(k: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(k * 0.618034 % 1, (0.85, 0.6)[k % 2], (0.9, 0.65, 0.8)[k % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def output_names(names: Sequence[str]) -> list[PurePosixPath]:
    """What each list entry's files are called, without suffix: ``sub/x.tif`` becomes ``sub/x``.

    No name leaves the folder that it is joined to: ``..``, drives and leading slashes fall away. Entries that would
    share a name (``x.png`` and ``x.jpg``; capitals do not count) keep their suffix, and if that is not enough a number.
    """
    paths = [_inside(name) for name in names]
    stems = [path.with_suffix("") for path in paths]
    times = Counter(str(stem).lower() for stem in stems)
    chosen = [stem if times[str(stem).lower()] == 1 else path for stem, path in zip(stems, paths, strict=True)]
    taken: set[str] = set()
    for i, path in enumerate(chosen):
        free, n = path, 1
        while str(free).lower() in taken:
            n += 1
            free = path.with_name(f"{path.name}-{n}")
        taken.add(str(free).lower())
        chosen[i] = free
    return chosen


def _inside(name: str) -> PurePosixPath:
    parts = name.replace("\\", "/").replace(":", "/").split("/")
    kept = [part for part in parts if part not in ("", ".", "..")]
    if not kept:
        raise ValueError(f"{name!r} names no file")
    return PurePosixPath(*kept)


def write_mask(path: Path, mask: NDArray[np.uint8], colours: Sequence[Colour]) -> None:
    """``mask`` (uint8 class numbers, ``(H, W)``) as a PNG that programs read as class numbers and people see in colour.

    Folders are made. 255 (ignored, no data) is shown in mid-grey.
    Raises: ValueError when a class has no colour.
    """
    if int(mask[mask != IGNORED].max(initial=0)) >= len(colours):
        raise ValueError(f"class {int(mask[mask != IGNORED].max())} has no colour, there are {len(colours)}")
    image = Image.fromarray(mask)
    image.putpalette(_table(colours).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def colour_mask(mask: NDArray[np.uint8], colours: Sequence[Colour]) -> Rgb:
    """``mask`` (uint8 class numbers, ``(H, W)``) as uint8 RGB ``(H, W, 3)``."""
    return _table(colours)[mask]


def _table(colours: Sequence[Colour]) -> Rgb:
    table = np.full((256, 3), 128, dtype=np.uint8)
    table[: len(colours)] = colours
    return table


def write_probability(path: Path, prob_CHW: NDArray[np.float32]) -> Path:
    """Probabilities of all classes, ``(C, H, W)`` in 0..1.

    Two classes: that of change as a 16-bit grey PNG, 65535 = certain (steps of 1.5e-5). More: float32 in a compressed
    ``.npz`` under the name ``probability``. Returns the path, with the suffix set accordingly.
    Raises: ValueError outside 0..1 or for a single class.
    """
    if len(prob_CHW) < 2:
        raise ValueError("probabilities of two or more classes are needed")
    if not (prob_CHW.min() >= -1e-6 and prob_CHW.max() <= 1 + 1e-6):
        raise ValueError(f"probabilities must be in 0..1, got {prob_CHW.min():g} .. {prob_CHW.max():g}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(prob_CHW) == 2:
        path = path.with_name(f"{path.name}.png")
        levels = np.rint(prob_CHW[1].clip(0, 1) * np.float32(65535)).astype(np.uint16)
        Image.fromarray(levels).save(path, "PNG")
    else:
        path = path.with_name(f"{path.name}.npz")
        np.savez_compressed(path, probability=prob_CHW.astype(np.float32))
    return path


def read_probability(path: Path) -> NDArray[np.float32]:
    """What :func:`write_probability` wrote: float32 ``(C, H, W)``."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return np.asarray(file["probability"], dtype=np.float32)
    with open_image(path) as image:
        change = np.asarray(image).astype(np.float32) / np.float32(65535)
    return np.stack([1 - change, change])


def strip(pictures: Sequence[Rgb]) -> Rgb:
    """Pictures of one size, uint8 RGB ``(H, W, 3)``, side by side with 10 black pixels between, as TAO shows them.

    TAO's order: before, after, prediction, and in ``evaluate`` the truth.
    """
    gap = np.zeros((pictures[0].shape[0], _SEPARATOR, 3), dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def write_picture(path: Path, picture: Rgb) -> None:
    """uint8 RGB as the file type of the path's suffix; JPEG in the quality of TAO's pictures. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=75)  # Pillow passes it to the formats that know it


def overlay(picture: Rgb, prediction: NDArray[np.uint8], truth: NDArray[np.uint8] | None = None) -> Rgb:
    """The predicted change drawn over ``picture`` (uint8 RGB, ``(H, W, 3)``): tinted, in a border of full
    colour.

    With ``truth``: what was found, missed, invented or taken for another change class, in :data:`OVERLAY_COLOURS`;
    ignored pixels are darkened. Without, all of it as found. Masks are uint8 class numbers ``(H, W)``.
    """
    drawn = picture.astype(np.float32)
    grey_HW1 = np.dot(drawn, _LUMA)[..., None]  # a tint keeps its colour on grey only
    if truth is not None:
        drawn[truth == IGNORED] *= 0.35
    for name, region in _regions(prediction, truth).items():
        colour = np.array(OVERLAY_COLOURS[name], dtype=np.float32)
        drawn[region] = (1 - _TINT) * grey_HW1[region] + _TINT * colour
        drawn[region & ~_inner(region)] = colour
    return np.rint(drawn).astype(np.uint8)


def _regions(prediction: NDArray[np.uint8], truth: NDArray[np.uint8] | None) -> dict[str, NDArray[np.bool_]]:
    called = (prediction > 0) & (prediction != IGNORED)
    if truth is None:
        return {"found": called}
    changed, known = (truth > 0) & (truth != IGNORED), truth != IGNORED
    return {
        "found": changed & (prediction == truth),
        "missed": changed & ~called,
        "false": called & known & ~changed,
        "other class": changed & called & (prediction != truth),
    }


def _inner(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours belong to the region too; the image's border counts as inside."""
    padded = np.pad(region, 1, mode="edge")
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
