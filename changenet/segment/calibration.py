"""The scenes that a static quantization observes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from changenet.segment.files import CALIBRATION_KEY, Split, read_split
from fiducial.errors import DatasetError, UserError
from fiducial.run.console import LOGGER

if TYPE_CHECKING:
    from changenet.segment.config import SegmentDataset

__all__ = ["calibration_splits"]

_IN_PLACE = ("train", "val", "test", "infer")
"""Splits whose pairs are observed where no calibration data are named, in the order of preference."""


def calibration_splits(data: SegmentDataset, folders: Sequence[str] = (), key: str = "") -> list[Split]:
    """The pairs of the calibration key; of ``folders``, which ``key`` names; else of the first split that is there.

    Raises: UserError naming the key.
    """
    if not folders and not data.quant_calibration_dataset.images_dir:
        return [_of_a_split(data)]
    named = folders or (data.quant_calibration_dataset.images_dir,)
    return [_at(data, folder, key or CALIBRATION_KEY) for folder in named]


def _of_a_split(data: SegmentDataset) -> Split:
    for split in _found(data):
        LOGGER.info("%s is not set: calibrating with the pairs of %s", CALIBRATION_KEY, split.list_path)
        return replace(split, pairs=tuple(replace(pair, label=None) for pair in split.pairs))  # no mask is needed
    found = "not set, and no list of dataset.segment.root_dir can be read"
    raise DatasetError(CALIBRATION_KEY, found, "name a folder with A, B and list/predict.txt")


def _found(data: SegmentDataset) -> Iterator[Split]:
    for name in _IN_PLACE:
        try:
            yield read_split(data, name)
        except UserError:
            continue


def _at(data: SegmentDataset, folder: str, key: str) -> Split:
    there = data.quant_calibration_dataset.model_copy(update={"images_dir": folder})
    try:
        return read_split(data.model_copy(update={"quant_calibration_dataset": there}), "calibration")
    except UserError as error:
        raise type(error).of(replace(p, where=p.where.replace(CALIBRATION_KEY, key)) for p in error.problems) from None
