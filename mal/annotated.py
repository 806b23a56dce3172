"""What the readers of annotation files that lie beside their pictures, one for each, have in common. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fiducial.data.archives import images_root
from fiducial.data.files import IMAGE_SUFFIXES, is_file
from fiducial.data.images import open_image
from fiducial.errors import DatasetError
from mal.crop import Corners

__all__ = ["Annotated", "Pictures", "Thing", "content_of"]

_MOST_BYTES = 1 << 26


class Thing(NamedTuple):
    """One annotated object: its class, a name or a number; its corners in pixels; its ``segmentation`` as in COCO."""

    label: str | int
    corners: Corners
    segmentation: Any = None


class Annotated(NamedTuple):
    """What a file says: of which picture, how large it is, and the objects in it."""

    picture: str
    size: tuple[int, int]
    things: list[Thing]


class Pictures:
    """Finds the picture that an annotation file belongs to."""

    def __init__(self, folder: Path | None, names: Sequence[str]) -> None:
        """``names``: of a few of the pictures, below the folder that they are in, without suffix."""
        self.root = images_root(folder, names) if folder is not None and names else folder

    def find(self, name: str) -> str | None:
        """The file, below the folder, of the picture with this name without suffix."""
        if self.root is None:
            return None
        found = (f"{name}{suffix}" for lower in IMAGE_SUFFIXES for suffix in (lower, lower.upper()))
        return next((file for file in found if is_file(self.root / file)), None)

    def has(self, file: str) -> bool:
        return self.root is not None and is_file(self.root / file)

    def size(self, file: str) -> tuple[int, int]:
        """Width and height. Raises: DatasetError for what is no picture."""
        assert self.root is not None  # only asked about pictures that were found
        with open_image(self.root / file) as image:
            return image.size


def content_of(path: Path) -> bytes:
    """The content of an annotation file. Raises: DatasetError when it is none, or cannot be read."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DatasetError(str(path), "too large for an annotation file", "check what it is")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(str(path), f"cannot be read ({error.strerror})", "check its permissions") from None
