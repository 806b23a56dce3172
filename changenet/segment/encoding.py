"""What the numbers of a mask mean. No torch.

Masks hold 0 and 255 (``norm``: unchanged and changed) or class numbers, 255 for pixels that do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from changenet.segment.counts import IGNORED
from changenet.segment.rasters import MASK_FIX, Numbers
from changenet.segment.tiff import BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO
from fiducial.errors import DatasetError

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["LabelEncoding", "Mask", "Pixels", "mask_of", "mask_values"]

Pixels = NDArray[np.uint8]

CHANGED = 255
"""What ``norm`` masks say of a changed pixel."""
_ALL_UNCHANGED = "with label_transform norm all of it would be unchanged"
MAX_CLASSES = 64
"""Numbers up to this are taken for class numbers where a mask holds no 255."""


@dataclass(frozen=True)
class LabelEncoding:
    """How the values of a mask file become class numbers."""

    norm: bool
    num_classes: int

    @classmethod
    def of(cls, data: SegmentDataset) -> LabelEncoding:
        """The encoding that a spec states."""
        return cls(data.label_transform == "norm", data.num_classes)

    def problem(self, counts_256: NDArray[np.int64]) -> tuple[str, str] | None:
        """What is wrong with a mask of so many pixels per value, and the fix; None when it can be used.

        TAO's ``norm`` takes every value but 255 for no change, so that a 0/1 mask has no change anywhere.
        """
        values = np.flatnonzero(counts_256).tolist()
        if self.norm:
            if not 0 < max(values, default=0) < MAX_CLASSES:
                return None
            found = f"values {_some(values)} and no 255: {_ALL_UNCHANGED}"
            fix = "set dataset.segment.label_transform: None (the mask holds class numbers)"
            return found, fix + ("" if max(values) < self.num_classes else " and num_classes above all of them")
        wrong = [value for value in values if value >= self.num_classes and value != IGNORED]
        if wrong:
            fix = f"raise dataset.segment.num_classes (now {self.num_classes}), or mend the mask (255 is ignored)"
            return f"class numbers {_some(wrong)}", fix
        return None

    def problem_of_all(self, counts_256: NDArray[np.int64]) -> tuple[str, str] | None:
        """The same for all masks together, whose single files may look right."""
        if self.norm and self.num_between(counts_256) and not counts_256[CHANGED]:
            found = f"values up to {np.flatnonzero(counts_256).max()} and no 255 in any mask: {_ALL_UNCHANGED}"
            return found, "write masks of 0 and 255 in a lossless format"
        if not self.norm and set(np.flatnonzero(counts_256).tolist()) == {0, IGNORED}:
            found = "values 0 and 255 alone: with label_transform None every 255 is ignored, and nothing is changed"
            return found, "set dataset.segment.label_transform: norm"
        return None

    def num_between(self, counts_256: NDArray[np.int64]) -> int:
        """Pixels that are neither 0 nor 255 in a ``norm`` mask: unchanged to TAO and here."""
        return int(counts_256[1:CHANGED].sum()) if self.norm else 0

    def classes(self, mask: Mask, *, where: str) -> Pixels:
        """Class numbers ``(H, W)`` of a mask, 255 where it says nothing.

        Raises: DatasetError naming ``where`` when its numbers mean nothing.
        """
        if wrong := self.problem_of(mask):
            raise DatasetError(where, *wrong)
        classes = (mask.values == CHANGED).astype(np.uint8) if self.norm else mask.values
        return np.where(mask.valid, classes, np.uint8(IGNORED))

    def problem_of(self, mask: Mask | MaskCounts) -> tuple[str, str] | None:
        """What is wrong with a mask, and the fix; see :meth:`problem`."""
        if self.norm and mask.nodata == CHANGED:
            found = "it declares 255 to mean no data, and label_transform norm takes 255 for changed"
            return found, "remove the declaration (`gdal_edit.py -unsetnodata`), or set label_transform: None"
        return self.problem(mask.counts_256)


@dataclass(frozen=True)
class Mask:
    """The numbers of a mask file, uint8 ``(H, W)``; ``valid`` bool ``(H, W)``, False where it has no data.

    ``nodata``: the number that the file declares to mean none.
    """

    values: Pixels
    valid: NDArray[np.bool_]
    nodata: float | None = None

    @property
    def counts_256(self) -> NDArray[np.int64]:
        """Pixels of each value, those without data left out."""
        return np.bincount(self.values[self.valid], minlength=256)


@dataclass(frozen=True, slots=True)
class MaskCounts:
    """How often each value is in a mask, (value, pixels) of those that are; ``nodata`` as of :class:`Mask`."""

    num_pixels: int
    counts: tuple[tuple[int, int], ...]
    nodata: float | None = None

    @classmethod
    def of(cls, values: Pixels) -> MaskCounts:
        """Of a mask that has data everywhere."""
        return cls.of_mask(Mask(values, np.ones(values.shape, dtype=bool)))

    @classmethod
    def of_mask(cls, mask: Mask) -> MaskCounts:
        """Of any mask."""
        counts_256 = mask.counts_256
        known = tuple((int(value), int(counts_256[value])) for value in np.flatnonzero(counts_256))
        return cls(mask.values.size, known, mask.nodata)

    @property
    def counts_256(self) -> NDArray[np.int64]:
        """Pixels of each value."""
        counts = np.zeros(256, dtype=np.int64)
        for value, count in self.counts:
            counts[value] = count
        return counts


def mask_of(numbers: Numbers, *, where: str) -> Mask:
    """Raises: DatasetError for fractions and for numbers that 8 bits do not hold."""
    known = numbers.values[numbers.valid]
    if known.size and not (known.min() >= 0 and known.max() <= 255):
        raise DatasetError(where, f"values {known.min():g} .. {known.max():g}", MASK_FIX)
    if known.dtype.kind == "f" and (fractions := known[known != np.rint(known)]).size:
        raise DatasetError(where, f"fractions ({fractions[0]:g}, and {fractions.size - 1:,} more)", MASK_FIX)
    values = np.zeros(numbers.values.shape, dtype=np.uint8)
    values[numbers.valid] = known
    return Mask(values, numbers.valid, numbers.nodata)


def mask_values(image: Image.Image, *, where: str) -> Pixels:
    """The values of a mask file that Pillow read, uint8 ``(H, W)``: grey levels, palette numbers, bits; see
    :func:`mask_of`. Raises: DatasetError also for a colour picture, unless it is grey.
    """
    values = np.asarray(image)
    if values.ndim == 3:
        colour = values[..., : len(image.getbands()) - ("A" in image.getbands())]
        if not (colour == colour[..., :1]).all():
            raise DatasetError(where, f"a colour picture (mode {image.mode})", MASK_FIX)
        values = colour[..., 0]
    return mask_of(Numbers(_stored(image, values), np.ones(values.shape, dtype=bool), None), where=where).values


def _stored(image: Image.Image, values: NDArray[Any]) -> NDArray[Any]:
    """The numbers of a TIFF, which Pillow makes levels of grey of: spread over 0..255, inverted where 0 is white."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(np.max(tags.get(BITS_PER_SAMPLE, 8)))
    if image.mode not in ("1", "L") or not 0 < bits <= 8:
        return values
    highest = 1 if image.mode == "1" else 2**bits - 1
    numbers = values.astype(np.uint8) // (1 if image.mode == "1" else 255 // highest)
    return highest - numbers if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else numbers


def _some(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "")
