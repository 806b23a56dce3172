"""Reading images, and keeping decoded ones."""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fiducial.data.lru import ByteLRU
from fiducial.errors import DatasetError

__all__ = ["MAX_PIXELS", "ImageCache", "check_whole", "is_deep", "nearby", "read_image", "read_rgb", "to_rgb"]

MAX_PIXELS = 1 << 29
"""Pixels (0.5 gigapixel; 1.5 GiB as RGB) above which a file is taken for a decompression bomb and refused."""

_LAST_BYTES = {b"\x89PNG": b"IEND", b"\xff\xd8": b"\xff\xd9"}
"""How a file of a format begins: what stands at its end, unless something is attached to it."""
_TAIL = 4096
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)  # what Pillow raises on bad bytes


def read_rgb(path: Path | str) -> Image.Image:
    """The image at ``path`` as 8-bit RGB; see :func:`read_image` and :func:`to_rgb`."""
    path = Path(path)
    return to_rgb(read_image(path), where=str(path))


def read_image(path: Path | str) -> Image.Image:
    """The image at ``path``, decoded, in the mode of its file (the first frame of several). The file is closed.

    The orientation in EXIF is not applied: TAO does not either, and boxes and masks are drawn on the stored pixels.

    Raises: DatasetError naming ``path`` if it is missing (and what lies beside it), empty, no image, cut off, or has
        more than :data:`MAX_PIXELS` pixels.
    """
    path = Path(path)
    if not path.is_file():
        beside = ", ".join(other.name for other in nearby(path))
        raise DatasetError(str(path), "no such file", f"beside it: {beside}" if beside else "check folder and name")
    if path.stat().st_size == 0:
        raise DatasetError(str(path), "an empty file", "copy it again")
    _admit_large_images()
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(str(path), f"more than {MAX_PIXELS:,} pixels", "cut it into tiles") from error
    except UnidentifiedImageError as error:
        raise DatasetError(str(path), "not an image", "remove it, or check how it was written") from error
    except _DAMAGE as error:
        raise DatasetError(str(path), f"an image that cannot be read ({error})", "copy or export it again") from error


def check_whole(path: Path | str) -> None:
    """Raises DatasetError for a PNG or JPEG that is cut off or empty. Only its ends are read, unless they are odd."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            ending = next((end for begin, end in _LAST_BYTES.items() if head.startswith(begin)), b"")
            file.seek(max(0, path.stat().st_size - _TAIL))
            is_whole = bool(head) and ending in file.read()
    except OSError:
        is_whole = False
    if not is_whole:
        read_image(path)  # says what is wrong, if anything is


def is_deep(path: Path | str) -> bool:
    """Whether the header says that pixels have one channel of more than 8 bits."""
    try:
        with Image.open(path) as image:
            return image.mode.startswith(("I", "F"))
    except (*_DAMAGE, Image.DecompressionBombError):
        return False


def _admit_large_images() -> None:
    """Pillow refuses from 179 megapixels on, less than a survey image has; ours is the limit where it is higher."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


def to_rgb(image: Image.Image, *, where: str = "image") -> Image.Image:
    """``image`` as 8-bit RGB: grey is repeated, palettes are looked up, alpha is dropped, not blended.

    16-bit grey is divided by 256, so that the range of the type maps to 0..255 and two images stay comparable.
    (Pillow, and so TAO, cuts at 255 instead: nearly every pixel becomes white.)

    Raises: DatasetError for 32-bit and floating-point pixels, whose range the file does not tell.
    """
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise DatasetError(where, f"pixels of mode {image.mode!r} (32 bits) have no known range", "save as 8 or 16 bit")
    return image.convert("RGB")


def nearby(path: Path) -> list[Path]:
    """Files beside ``path`` that have its name with another extension or other capitals, sorted."""
    try:
        changed = path.parent.stat().st_mtime_ns
    except OSError:
        return []
    names = _names_by_stem(path.parent, changed).get(path.stem.lower(), ())
    return [path.with_name(name) for name in sorted(names) if name != path.name]


@lru_cache(maxsize=8)
def _names_by_stem(folder: Path, changed: int) -> dict[str, list[str]]:
    """The names in ``folder`` as of ``changed``; kept, because a data set misses thousands of images at once."""
    found = defaultdict(list)
    for name in os.listdir(folder):
        found[PurePath(name).stem.lower()].append(name)
    return dict(found)


class ImageCache(ByteLRU[tuple[str, tuple[int, int] | None, Image.Resampling], npt.NDArray[np.uint8]]):
    """Decoded and resized images. One per process: every dataloader worker may use ``max_bytes``."""

    def rgb(
        self,
        path: Path | str,
        size: tuple[int, int] | None = None,
        interpolation: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> npt.NDArray[np.uint8]:
        """:func:`read_rgb` of ``path``, resized to ``size`` = (height, width) if given.

        Returns a read-only array (H, W, 3), 0..255, that other callers share: copy it before changing it.

        Raises: DatasetError as :func:`read_image`.
        """
        key = (str(path), size, interpolation)
        kept = self.get(key)
        if kept is not None:
            return kept
        image = read_rgb(path)
        if size is not None and (image.height, image.width) != size:
            image = image.resize((size[1], size[0]), interpolation)
        pixels = np.array(image)
        pixels.setflags(write=False)
        self.put(key, pixels, pixels.nbytes)
        return pixels
