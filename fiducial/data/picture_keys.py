"""Naming a picture by its files as they are now and by what is done to them, before it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fiducial.data.feature_store import KEY_BYTES

__all__ = ["PictureKeys", "content_key"]

_MOST_KNOWN = 2**22
"""Places of the table of known keys: 32 MB."""
_ROW = 16
"""Places of one row of it: while a quarter is taken, one row in a million overflows."""


def content_key(*contents: bytes | memoryview) -> bytes:
    """A key that is equal for equal contents alone."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


class PictureKeys:
    """Keys of pictures, and which of them need not be read: loader processes ask, the training process tells.

    ``transform``: all that is done to every picture, in words. ``num_pictures``: about how many there will be.
    """

    def __init__(self, transform: str, num_pictures: int) -> None:
        self.transform = transform.encode()
        size = min(_MOST_KNOWN, max(_ROW, 1 << (4 * num_pictures).bit_length()))
        self._known = torch.zeros((size // _ROW, _ROW), dtype=torch.int64)
        self._known.share_memory_()  # type: ignore[no-untyped-call]

    def key(self, files: Iterable[Path], variant: str = "") -> bytes:
        """The key of a picture made of ``files`` in this order and changed as ``variant`` says.

        It changes with every change of a file, so call this before the file is read. Raises: OSError.
        """
        stats = ((str(path), os.stat(path)) for path in files)
        said = [f"{path}\n{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}".encode() for path, s in stats]
        return content_key(self.transform, variant.encode(), *said)

    def is_known(self, key: bytes) -> bool:
        """Whether :meth:`tell` was called with the key. False where so many were told that it had to give way."""
        number, row = self._place(key)
        return number in row

    def tell(self, key: bytes) -> None:
        """The picture of this key need not be read again."""
        number, row = self._place(key)
        if number not in row:
            (empty,) = np.nonzero(row == 0)
            row[empty[0] if len(empty) else number // len(self._known) % _ROW] = number

    def _place(self, key: bytes) -> tuple[int, npt.NDArray[np.int64]]:
        """The number that stands for a key, 0 for none, and the row of the table where it may be."""
        number = int.from_bytes(key[:8], "little", signed=True) or 1
        return number, self._known[number % len(self._known)].numpy()

    def forget(self) -> None:
        """Every picture must be read again."""
        self._known.zero_()
