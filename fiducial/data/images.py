"""Reading images, and keeping decoded ones. Whoever opens an image file does it through here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from fiducial.data.files import HEAD, nearby, what_bytes_are, why_unreadable
from fiducial.data.jpeg import decoded
from fiducial.data.kept import stamp_of
from fiducial.data.lru import ByteLRU
from fiducial.data.picture_cache import PictureCache
from fiducial.errors import DatasetError, UserError

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "ImageCache",
    "ImageFacts",
    "ImageGlance",
    "check_whole",
    "has_16_bits",
    "image_facts",
    "image_glance",
    "image_size",
    "is_deep",
    "nearby",
    "open_image",
    "read_image",
    "read_pixels",
    "read_rgb",
    "to_rgb",
]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000")
"""What is read, whatever a file is called. For some of the other formats Pillow starts programs; some fit any bytes."""
MAX_PIXELS = 1 << 29
"""Pixels (0.5 gigapixel; 1.5 GiB as RGB) above which a file is taken for a decompression bomb and refused."""

READ_AS = f"rgb 1, Pillow {PIL.__version__}"
"""What a kept picture is kept as: it changes when :func:`read_pixels` makes other pixels of the same file."""
_LAST_BYTES = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
"""What stands at the end of a whole file, unless something is attached to it."""
_TAIL = 4096
_SURELY_RGB = ("1", "L", "P", "RGB", "RGBA")
"""Modes that :func:`to_rgb` makes RGB of whatever the pixels are."""
_UNKNOWN = ("not an image", "remove it, or check how it was written")


@contextmanager
def open_image(path: Path | str) -> Iterator[ImageFile.ImageFile]:
    """The image file at ``path`` with its header read; its pixels are read when they are first used, within.

    Raises: DatasetError naming ``path`` if it is missing (and what lies beside it), no file, empty, none of
        :data:`FORMATS` (and what it is instead), cut off or damaged, or has more than :data:`MAX_PIXELS` pixels.
    """
    path = Path(path)
    if wrong := why_unreadable(path):
        raise DatasetError(str(path), *wrong)
    _admit_large_images()
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(str(path), f"more than {MAX_PIXELS:,} pixels", "cut it into tiles") from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            other = what_bytes_are(file.read(HEAD))
        found, fix = (f"not an image but {other[0]}", other[1]) if other else _UNKNOWN
        raise DatasetError(str(path), found, fix) from error
    except Exception as error:  # whatever Pillow's decoders stumble over in damaged bytes
        told = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(str(path), f"an image that cannot be read ({told})", "copy or export it again") from error


def read_image(path: Path | str) -> Image.Image:
    """The image at ``path``, decoded, in the mode of its file (the first frame of several). The file is closed.

    The orientation in EXIF is not applied: TAO does not either, and boxes and masks are drawn on the stored pixels.

    Raises: DatasetError as :func:`open_image`.
    """
    with open_image(path) as image:
        image.load()
        return image


def read_rgb(path: Path | str) -> Image.Image:
    """The image at ``path`` as 8-bit RGB; see :func:`read_image` and :func:`to_rgb`."""
    return to_rgb(read_image(path), where=str(path))


def read_pixels(
    path: Path | str,
    size: tuple[int, int] | None = None,
    interpolation: Image.Resampling = Image.Resampling.BILINEAR,
) -> npt.NDArray[np.uint8]:
    """:func:`read_rgb`, resized to ``size`` = (height, width) if given, as an array ``(H, W, 3)``.

    Faster for most JPEG files than making an array of an image (see :mod:`fiducial.data.jpeg`), and never other pixels.
    """
    with open_image(path) as image:
        wanted = None if size is None or size == (image.height, image.width) else (size[1], size[0])
        pixels = decoded(image, "RGB" if wanted is None else "RGBX")
        if pixels is None:
            image.load()
    if pixels is None:
        found = to_rgb(image, where=str(path))
        return np.asarray(found if wanted is None else found.resize(wanted, interpolation))
    if wanted is None:
        return pixels
    # four bytes a pixel are how Pillow holds RGB, too: it takes them as they are
    found = Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1).resize(wanted, interpolation)
    return np.asarray(found.convert("RGB"))


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) from the header. Raises: DatasetError as :func:`open_image`."""
    with open_image(path) as image:
        return image.size


def check_whole(path: Path | str) -> None:
    """Raises DatasetError for what :func:`to_rgb` refuses, and what is cut off; damage within shows when it is decoded.

    Of PNG, JPEG, BMP and WebP only the ends are read.
    """
    image_glance(path)


@dataclass(frozen=True, slots=True)
class ImageGlance:
    """What the header of a whole image says."""

    size: tuple[int, int]
    """(width, height)"""
    has_16_bits: bool
    """Whether a channel has 16 bits."""


def image_glance(path: Path | str) -> ImageGlance:
    """What the header says. Raises: DatasetError as :func:`check_whole`."""
    path = Path(path)
    with open_image(path) as image:
        _check_range(image, str(path))
        glance = ImageGlance(image.size, _has_16_bits(image))
        if not _is_long_enough(path, image):
            image.load()  # says what is wrong, if anything is
        return glance


def _is_long_enough(path: Path, image: ImageFile.ImageFile) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        if ending := _LAST_BYTES.get(image.format or ""):
            file.seek(max(0, size - _TAIL))
            return ending in file.read()
        if image.format == "WEBP":
            file.seek(4)
            return size >= 8 + int.from_bytes(file.read(4), "little")
    if image.format != "BMP":
        return False
    codec, _, offset, args = image.tile[0]
    return codec == "raw" and isinstance(args, tuple) and size >= offset + int(args[1]) * image.height


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image that was decoded is like."""

    size: tuple[int, int]
    """(width, height)"""
    brightest: int | None
    """The highest value, 0..65535, of a file with 16 bits per channel; None for others."""
    has_more_pages: bool
    """Whether the file holds further pictures, which are not read."""


def image_facts(path: Path | str) -> ImageFacts:
    """Decode an image and look at it. Raises: DatasetError as :func:`read_image` and :func:`to_rgb`."""
    with open_image(path) as image:
        has_high_bytes = _has_high_bytes(image)
        if decoded(image, "RGB") is None:
            image.load()
        if image.mode not in _SURELY_RGB:
            to_rgb(image, where=str(path))
        return ImageFacts(image.size, _brightest(image, has_high_bytes), _has_more_pages(image))


def _brightest(image: Image.Image, has_high_bytes: bool) -> int | None:
    if image.mode.startswith("I;16"):
        return int(np.asarray(image).max(initial=0))
    return int(np.asarray(image).max(initial=0)) << 8 | 255 if has_high_bytes else None


def _has_more_pages(image: ImageFile.ImageFile) -> bool:
    """Whether a second page can be gone to; those of a JPEG are previews."""
    if image.format not in ("TIFF", "GIF", "WEBP"):
        return False
    try:
        image.seek(1)
    except Exception:  # no second page, or a damaged one, which nobody needs
        return False
    return True


def _has_high_bytes(image: ImageFile.ImageFile) -> bool:
    """Whether each of several channels has 16 bits in the file, of which Pillow gives the higher 8."""
    return len(image.getbands()) > 1 and any("16" in str(tile[3]) for tile in image.tile)


def has_16_bits(path: Path | str) -> bool:
    """Whether the header says that a channel has 16 bits; False for what is no image."""
    try:
        with open_image(path) as image:
            return _has_16_bits(image)
    except DatasetError:
        return False


def _has_16_bits(image: ImageFile.ImageFile) -> bool:
    return image.mode.startswith("I;16") or _has_high_bytes(image)


def is_deep(path: Path | str) -> bool:
    """Whether the header says that pixels have one channel of more than 8 bits."""
    try:
        with open_image(path) as image:
            return image.mode.startswith(("I", "F"))
    except DatasetError:
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
    _check_range(image, where)
    return image.convert("RGB")


def _check_range(image: Image.Image, where: str) -> None:
    if image.mode in ("I", "F"):
        raise DatasetError(where, f"pixels of mode {image.mode!r} (32 bits) have no known range", "save as 8 or 16 bit")


class ImageCache(ByteLRU[tuple[object, ...], npt.NDArray[np.uint8]]):
    """Decoded and resized images. One per process: every dataloader worker may use ``max_bytes``.

    ``shared``: what all processes keep together, instead; ``max_bytes`` are for what finds no room there. An image
    whose file has changed is read anew.
    """

    def __init__(self, max_bytes: int, shared: PictureCache | None = None) -> None:
        super().__init__(max_bytes)
        self.shared = shared

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "shared": self.shared}

    def rgb(
        self,
        path: Path | str,
        size: tuple[int, int] | None = None,
        interpolation: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> npt.NDArray[np.uint8]:
        """:func:`read_pixels`, kept.

        Returns a read-only array (H, W, 3), 0..255, that other callers share: copy it before changing it.

        Raises: DatasetError as :func:`read_image`.
        """

        def from_file() -> npt.NDArray[np.uint8]:
            pixels = read_pixels(path, size, interpolation)
            pixels.setflags(write=False)
            return pixels

        def own() -> npt.NDArray[np.uint8]:
            if self.shared and not self.shared.is_full:
                return from_file()
            key = (str(path), stamp_of(path), size, interpolation) if self.max_bytes else ()
            pixels = self.get(key)
            if pixels is None:
                pixels = from_file()
                self.put(key, pixels, pixels.nbytes)
            return pixels

        if self.shared is None:
            return own()
        resized = "" if size is None else f", {size[0]} x {size[1]}, {interpolation.name}"
        return self.shared.kept(path, f"{READ_AS}{resized}", own)
