"""COCO's ways of telling an object's pixels, made run lengths. All is checked before pycocotools sees it.

That library believes what it is given: it writes run lengths beyond the picture beyond its memory, and a polygon takes
memory by its length. No torch.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiducial.errors import one_line

__all__ = ["checked", "checked_rle", "numbers_of", "packed", "rle_of_mask", "runs_of"]

Rle = dict[str, Any]
_FARTHEST = 1e8
"""Coordinates beyond this overflow in pycocotools, which counts fifths of pixels in 32 bits."""
_LONGEST = 1 << 22
"""Pixels around all polygons of a mask: the memory they take is 40 times as many bytes."""
_MOST_LETTERS = 7
"""Letters of a compressed run length, of 5 bits each; no picture needs more."""


def checked_rle(found: Any, size: tuple[int, int]) -> Rle:
    """The run lengths, as pycocotools takes them, of a ``segmentation`` in a picture of ``size`` (height, width).

    It is a list of polygons, or run lengths as numbers or as compressed text.

    Raises: ValueError saying what is wrong with it.
    """
    from pycocotools import mask as coco_mask

    sound = checked(found, size)
    if isinstance(sound, list):
        rle: Rle = coco_mask.merge(coco_mask.frPyObjects(sound, *size))
        return rle
    return sound if isinstance(sound["counts"], bytes) else dict(coco_mask.frPyObjects(sound, *size))


def checked(found: Any, size: tuple[int, int]) -> list[list[float]] | Rle:
    """What pycocotools may be given: polygons or run lengths. Raises: ValueError saying what is wrong with it."""
    if isinstance(found, list):
        return _polygons(found)
    if not isinstance(found, dict) or "counts" not in found:
        raise ValueError("neither polygons nor run lengths")
    if found.get("size") != list(size):
        shown = one_line(found.get("size"), 40)
        raise ValueError(f"run lengths of a picture of {shown} (height, width), not {list(size)}")
    counts = found["counts"]
    if isinstance(counts, str):
        _check_runs(runs_of(counts), size)
        return {"size": list(size), "counts": counts.encode("ascii")}
    runs = numbers_of(counts)
    if runs is None or not all(run.is_integer() for run in runs):
        raise ValueError("run lengths that are no whole numbers")
    _check_runs(np.array(runs, np.int64), size)
    return {"size": list(size), "counts": [int(run) for run in runs]}


def _check_runs(runs: NDArray[np.int64], size: tuple[int, int]) -> None:
    if not len(runs) or runs.min() < 0 or runs.sum() != math.prod(size):
        raise ValueError("run lengths that do not fill the picture")


def _polygons(parts: Sequence[Any]) -> list[list[float]]:
    polygons = []
    for part in parts:
        polygon = numbers_of(part)
        if polygon is None or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("polygons are lists x, y, x, y, … of three corners at least")
        polygons.append(polygon)
    if not polygons:
        raise ValueError("no polygon")
    if max(max(map(abs, polygon)) for polygon in polygons) > _FARTHEST or sum(map(_length, polygons)) > _LONGEST:
        raise ValueError("polygons that reach far beyond any picture")
    return polygons


def _length(polygon: Sequence[float]) -> float:
    closed = [*polygon, *polygon[:2]]
    return sum(abs(after - before) for before, after in zip(closed, closed[2:], strict=False))


def runs_of(text: str) -> NDArray[np.int64]:
    """COCO's compressed run lengths as numbers. Raises: ValueError for text that is none."""
    letters = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(letters < 32)  # a letter with the highest of its six bits has others after it
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (
        not len(ends)
        or ends[-1] != len(letters) - 1
        or letters.min() < 0
        or letters.max() >= 64
        or (ends - starts).max() >= _MOST_LETTERS
    ):
        raise ValueError(f"no compressed run lengths: {text[:20]!r}")
    shifts = 5 * (np.arange(len(letters)) - np.repeat(starts, ends - starts + 1))
    runs: NDArray[np.int64] = np.add.reduceat((letters & 31) << shifts, starts)
    runs -= np.where(letters[ends] & 16, 32 << shifts[ends], 0)
    for first in (1, 2):  # from the fourth on, each is told as the difference to the one before the last
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def rle_of_mask(mask: NDArray[np.bool_]) -> Rle:
    """A mask as it stands in a COCO file: run lengths as compressed text."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def numbers_of(values: Any) -> list[float] | None:
    """A list of plain, finite numbers of reasonable size; None for anything else."""
    if not isinstance(values, (list, tuple, array)):
        return None
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not -1e9 <= v <= 1e9 for v in values):
        return None
    return [float(v) for v in values]


_CODES = {frozenset({float}): "d", frozenset({int}): "q"}


def packed(node: dict[str, Any]) -> dict[str, Any]:
    """An object of a JSON file whose outlines and run lengths take eight bytes a number, where lists take 32."""
    if "segmentation" in node and isinstance(node["segmentation"], list):
        node["segmentation"] = [_packed(part) for part in node["segmentation"]]
    elif "counts" in node:
        node["counts"] = _packed(node["counts"])
    return node


def _packed(numbers: Any) -> Any:
    code = _CODES.get(frozenset(map(type, numbers))) if isinstance(numbers, list) else None
    try:
        return array(code, numbers) if code else numbers
    except OverflowError:  # nothing that can be used, but it is written as it was
        return numbers
