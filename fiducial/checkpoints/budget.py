"""How much memory the reading of a file may take: a file of a few bytes can ask for any amount of it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["OBJECT_BYTES", "Budget", "TooMuchError", "inflated_limit", "object_limit", "size_on_disk"]

OBJECT_BYTES = 64
"""What the smallest object of Python takes, roughly."""


class TooMuchError(Exception):
    """The file asks for more than any model file of its size would."""


def size_on_disk(file: Path | int) -> int:
    """The bytes of a file (a path or an open file's number) without its holes: any size can be stated for a file."""
    facts = os.stat(file)
    return min(facts.st_size, getattr(facts, "st_blocks", 0) * 512 or facts.st_size)


def object_limit(file_size: int) -> int:
    """So many bytes of objects may be made of a file of this size, beside its tensors.

    Small files may be all numbers of two bytes each; what is large is large by its arrays and strings.
    """
    return (64 << 20) + 32 * min(file_size, 4 << 20) + 4 * file_size


def inflated_limit(file_size: int) -> int:
    """So many bytes may the compressed parts of a file of this size become. Weights hardly shrink."""
    return (16 << 20) + 16 * file_size


class Budget:
    """What is left of the limit for a file of ``file_size`` bytes."""

    def __init__(self, file_size: int) -> None:
        self.limit = self.left = object_limit(file_size)

    def spend(self, amount: int) -> None:
        """Raises: TooMuchError when it is spent."""
        self.left -= amount
        if self.left < 0:
            raise TooMuchError(f"it asks for more than {self.limit / 2**20:,.0f} MiB")
