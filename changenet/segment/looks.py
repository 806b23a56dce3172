"""What is found in the images and masks of pairs, each file for itself. No torch.

What plain pictures are like is kept from run to run. Rasters are looked at anew: names in them, and files beside them,
count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import PIL

from changenet.segment.encoding import MaskCounts, mask_values
from changenet.segment.rasters import is_raster
from changenet.segment.reading import SceneReader
from fiducial.data.checks import in_threads
from fiducial.data.images import read_image
from fiducial.data.looks import DECODED, GLANCE, Look, Wrong, look_at
from fiducial.errors import UserError

__all__ = ["brightest_of", "masks_of"]

_Found = TypeVar("_Found")


def _plain_mask(path: Path) -> MaskCounts:
    return MaskCounts.of(mask_values(read_image(path), where=str(path)))


def _unpacked(record: Any) -> MaskCounts:
    pixels, pairs = record
    return MaskCounts(int(pixels), tuple((int(value), int(count)) for value, count in pairs))


_MASK: Look[MaskCounts] = Look(
    f"mask 1, Pillow {PIL.__version__}", _plain_mask, lambda mask: [mask.num_pixels, mask.counts], _unpacked
)


def masks_of(paths: Sequence[Path], reader: SceneReader) -> Iterator[MaskCounts | Wrong]:
    """The numbers in each mask."""
    return _merged(paths, lambda plain: look_at(_MASK, plain), lambda path: MaskCounts.of_mask(reader.mask(path)))


def brightest_of(paths: Sequence[Path], reader: SceneReader, *, decode: bool) -> Iterator[int | Wrong | None]:
    """What is wrong with each image, as far as it shows without decoding; ``decode`` all of it.

    Of a 16-bit picture whose scaling is not stated the highest value, None of others.
    """

    def see(path: Path) -> int | None:
        return reader.check(path, decode=decode)

    if reader.scaling is not None:  # what is made of a file is not in the file alone
        return iter(in_threads(_guarded(see), paths))
    return _merged(paths, _decoded if decode else _glanced_at, see)


def _decoded(paths: Sequence[Path]) -> Iterator[int | Wrong | None]:
    for found in look_at(DECODED, paths):
        yield found if isinstance(found, Wrong) else found.brightest


def _glanced_at(paths: Sequence[Path]) -> Iterator[int | Wrong | None]:
    glances = list(look_at(GLANCE, paths))
    is_deep = [not isinstance(glance, Wrong) and glance.has_16_bits for glance in glances]
    values = _decoded([path for path, deep in zip(paths, is_deep, strict=True) if deep])
    for glance, deep in zip(glances, is_deep, strict=True):
        yield next(values) if deep else glance if isinstance(glance, Wrong) else None


def _merged(
    paths: Sequence[Path],
    plain: Callable[[Sequence[Path]], Iterator[_Found | Wrong]],
    raster: Callable[[Path], _Found],
) -> Iterator[_Found | Wrong]:
    """In the order of the paths, what ``plain`` gives for plain pictures and ``raster`` for the others."""
    pictures = plain([path for path in paths if not is_raster(path)])
    others = iter(in_threads(_guarded(raster), [path for path in paths if is_raster(path)]))
    for path in paths:
        yield next(others if is_raster(path) else pictures)


def _guarded(see: Callable[[Path], _Found]) -> Callable[[Path], _Found | Wrong]:
    def look(path: Path) -> _Found | Wrong:
        try:
            return see(path)
        except UserError as error:
            return Wrong(error.problems)

    return look
