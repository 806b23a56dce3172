"""Pairs of images from the CSVs of a spec, as batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from changenet.classify.rows import PairRow, PairTable
from changenet.classify.transform import PairAugment, Pixels, compose_lights
from fiducial.data.images import ImageCache
from fiducial.data.normalization import Normalization
from fiducial.data.registration import apply_shift, shift_between
from fiducial.data.samplers import Draw
from fiducial.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PairBatch", "PairDataset", "PairReader"]

_Resampling = Image.Resampling


class PairBatch(TypedDict):
    """What a loader of pairs gives; B pairs, N goldens each.

    ``test`` float32 ``(B, 3, H, W)``; ``golden`` the same, ``(B, N, 3, H, W)`` with several goldens; both composed and
    normalised. ``label`` int64 ``(B,)``: 0 PASS, 1 defect, -1 unknown. ``row`` int64 ``(B,)``: place in the CSV.
    ``golden_id`` int64 ``(B,)``: equal for rows with the same golden; -1 where no other row has it, or it is drawn.
    """

    test: Tensor
    golden: Tensor
    label: Tensor
    row: Tensor
    golden_id: Tensor


class PairReader:
    """Reads, resizes and registers the pictures of a row. Goldens are kept decoded, since rows share them."""

    def __init__(self, table: PairTable, *, align: bool = False, cache_mb: int = 256) -> None:
        self.table, self.align = table, align
        self.goldens = ImageCache(cache_mb * 2**20)
        self._uncached = ImageCache(0)

    def tiles(self, row: PairRow, golden_names: Sequence[str], resample: _Resampling) -> list[list[Pixels]]:
        """uint8 ``(h, w, 3)`` tiles, one per light: those of the test image, then those of each golden."""
        table, size = self.table, self.table.layout.tile
        if table.layout.num_golden == 1:
            golden_files = [table.golden_files(row)]
        else:
            golden_files = [table.layout.files(table.images_dir, row.golden_path, name) for name in golden_names]
        goldens = [[self.goldens.rgb(path, size, resample) for path in files] for files in golden_files]
        test = [self._uncached.rgb(path, size, resample) for path in table.test_files(row)]
        return [registered(test, goldens[0]) if self.align else test, *goldens]

    def composed(self, row: PairRow) -> tuple[Pixels, Pixels]:
        """Test image and (first) golden, uint8 ``(H, W, 3)``, as the network sees them before normalisation."""
        names = self.table.golden_names(row)[:1] if self.table.layout.num_golden > 1 else ()
        tiles = self.tiles(row, names, _Resampling.BILINEAR)
        return compose_lights(tiles[0], self.table.layout), compose_lights(tiles[1], self.table.layout)


def registered(test: list[Pixels], golden: Sequence[Pixels]) -> list[Pixels]:
    """The test image's tiles moved onto the golden's, all lights by one shift (``dataset.classify.align: shift``)."""
    shift = shift_between(_grey(golden), _grey(test))
    return test if shift == (0.0, 0.0) else [apply_shift(tile, shift) for tile in test]


def _grey(tiles: Iterable[Pixels]) -> Any:
    return np.mean([tile.mean(axis=-1) for tile in tiles], axis=0, dtype=np.float64)


class PairDataset(Dataset[dict[str, Any]]):
    """Test/golden image pairs of a TAO classify CSV; an item is one pair of :class:`PairBatch`.

    Indexed by a place in the table, or by a :class:`~fiducial.data.samplers.Draw` that also says the epoch; what is
    random of an item follows from (seed, epoch, index) alone.

    ``augment`` None leaves images as they are. With several goldens, ``random_goldens`` draws them; else they are the
    first in sorted order, repeated when there are too few.

    Raises: DatasetError naming the CSV line and the file, when an image cannot be read.
    """

    def __init__(
        self,
        table: PairTable,
        normalize: Normalization,
        *,
        augment: PairAugment | None = None,
        random_goldens: bool = False,
        align: bool = False,
        cache_mb: int = 256,
        seed: int = 0,
    ) -> None:
        self.table, self.normalize, self.augment = table, normalize, augment
        self.random_goldens, self.seed = random_goldens, seed
        self.reader = PairReader(table, align=align, cache_mb=cache_mb)
        self._golden_ids = [-1] * len(table.rows) if self._draws_goldens else shared_goldens(table)

    @property
    def _draws_goldens(self) -> bool:
        return self.random_goldens and self.table.layout.num_golden > 1

    def __len__(self) -> int:
        return len(self.table.rows)

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        epoch, index = index if isinstance(index, Draw) else (0, index)
        row = self.table.rows[index]
        rng = np.random.default_rng((max(self.seed, 0), epoch, index))  # the same on any worker and rank
        resample = _Resampling.BICUBIC if self.augment else _Resampling.BILINEAR
        try:
            images = self.reader.tiles(row, self._choose_goldens(row, rng), resample)
        except DatasetError as error:
            problem = error.problems[0]
            raise DatasetError(f"{self.table.where(row)}: {problem.where}", problem.found, problem.fix) from None
        if self.augment:
            changed = self.augment([[Image.fromarray(tile) for tile in tiles] for tiles in images], rng)
            images = [[np.asarray(tile) for tile in tiles] for tiles in changed]
        test, *goldens = (compose_lights(tiles, self.table.layout) for tiles in images)
        single = self.table.layout.num_golden == 1
        return {
            "test": self.normalize(test),
            "golden": self.normalize(goldens[0] if single else np.stack(goldens)),
            "label": torch.tensor(row.label),
            "row": torch.tensor(index),
            "golden_id": torch.tensor(self._golden_ids[index]),
        }

    def _choose_goldens(self, row: PairRow, rng: np.random.Generator) -> list[str]:
        wanted = self.table.layout.num_golden
        if wanted == 1:
            return []
        names = self.table.golden_names(row)
        if self.random_goldens:
            return [str(name) for name in rng.choice(names, wanted, replace=len(names) < wanted)]
        return [names[i % len(names)] for i in range(wanted)]


def shared_goldens(table: PairTable) -> list[int]:
    """For every row a number that is equal for equal goldens; -1 for a golden that no other row has."""
    keys = [table.golden_key(row) for row in table.rows]
    count = Counter(keys)
    number = {key: place for place, key in enumerate(count)}
    return [number[key] if count[key] > 1 else -1 for key in keys]
