"""Pairs of images from the CSVs of a spec, as batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from changenet.classify.rows import PairRow, PairTable
from changenet.classify.transform import PairAugment, PairChange, Pixels, compose_lights
from fiducial.data.images import ImageCache
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import PictureCache
from fiducial.data.picture_keys import PictureKeys
from fiducial.data.registration import apply_shift, shift_between
from fiducial.data.samplers import Draw
from fiducial.errors import DatasetError
from fiducial.training.features import collate_keyed

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PairBatch", "PairDataset", "PairReader", "collate_pairs"]

_Resampling = Image.Resampling


class PairBatch(TypedDict):
    """What a loader of pairs gives; B pairs, N goldens each.

    ``test`` float32 ``(B, 3, H, W)``; ``golden`` the same, ``(B, N, 3, H, W)`` with several goldens; both composed and
    normalised. ``label`` int64 ``(B,)``: 0 PASS, 1 defect, -1 unknown. ``row`` int64 ``(B,)``: place in the CSV.
    ``golden_id`` int64 ``(B,)``: equal for rows with the same golden; -1 where no other row has it, or it is drawn or
    changed at random. ``golden_rows`` int64 ``(G,)``, in training where rows of the batch share goldens: one row of
    each different golden; ``golden_place`` int64 ``(B,)``: for each row the place of its golden among those.

    Where features are kept (:mod:`fiducial.training.features`), pictures are named instead, and read as they are
    needed: ``keys``, ``pictures`` and so on, with the roles ``test`` and ``golden``; ``golden_rows`` are then places
    among the keys.
    """

    test: Tensor
    golden: Tensor
    label: Tensor
    row: Tensor
    golden_id: Tensor
    golden_rows: NotRequired[Tensor]
    golden_place: NotRequired[Tensor]


class PairReader:
    """Reads, resizes and registers the pictures of a row. Goldens are kept decoded, since rows share them; others where
    ``shared`` has room."""

    def __init__(
        self, table: PairTable, *, align: bool = False, cache_mb: int = 256, shared: PictureCache | None = None
    ) -> None:
        self.table, self.align = table, align
        self.goldens = ImageCache(cache_mb * 2**20, shared)
        self._tests = ImageCache(0, shared)

    def tiles(self, row: PairRow, golden_names: Sequence[str], resample: _Resampling) -> list[list[Pixels]]:
        """uint8 ``(h, w, 3)`` tiles, one per light: those of the test image, then those of each golden."""
        table, size = self.table, self.table.layout.tile
        if table.layout.num_golden == 1:
            golden_files = [table.golden_files(row)]
        else:
            golden_files = [table.layout.files(table.images_dir, row.golden_path, name) for name in golden_names]
        goldens = [[self.goldens.rgb(path, size, resample) for path in files] for files in golden_files]
        test = [self._tests.rgb(path, size, resample) for path in table.test_files(row)]
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
    first in sorted order, repeated when there are too few. ``keys``: items name their pictures, and leave out those
    that need not be read, unless ``read_all``; for one golden only.

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
        shared: PictureCache | None = None,
        seed: int = 0,
        keys: PictureKeys | None = None,
        read_all: bool = False,
    ) -> None:
        self.table, self.normalize, self.augment = table, normalize, augment
        self.random_goldens, self.seed, self.keys, self.read_all = random_goldens, seed, keys, read_all
        self.reader = PairReader(table, align=align, cache_mb=cache_mb, shared=shared)
        apart = self._draws_goldens or augment is not None
        self._golden_ids = [-1] * len(table.rows) if apart else shared_goldens(table)

    @property
    def _draws_goldens(self) -> bool:
        return self.random_goldens and self.table.layout.num_golden > 1

    def __len__(self) -> int:
        return len(self.table.rows)

    def __getitem__(self, index: int | Draw) -> dict[str, Any]:
        epoch, index = index if isinstance(index, Draw) else (0, index)
        row = self.table.rows[index]
        rng = np.random.default_rng((max(self.seed, 0), epoch, index))  # the same on any worker and rank
        chosen = self._choose_goldens(row, rng)
        height, width = self.table.layout.tile
        change = self.augment.draw(rng, width, height) if self.augment else None
        item: dict[str, Any] = {
            "label": torch.tensor(row.label),
            "row": torch.tensor(index),
            "golden_id": torch.tensor(self._golden_ids[index]),
        }
        if self.keys is not None:
            names = self._names(self.keys, row, change)
            item |= names
            if not self.read_all and all(self.keys.is_known(key) for key in names.values()):
                return item
        return item | self._pictures(row, chosen, change, rng)

    @property
    def _resample(self) -> _Resampling:
        return _Resampling.BICUBIC if self.augment else _Resampling.BILINEAR

    def _pictures(
        self, row: PairRow, goldens: Sequence[str], change: PairChange | None, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        try:
            images = self.reader.tiles(row, goldens, self._resample)
        except DatasetError as error:
            problem = error.problems[0]
            raise DatasetError(f"{self.table.where(row)}: {problem.where}", problem.found, problem.fix) from None
        if change is not None:
            changed = change([[Image.fromarray(tile) for tile in tiles] for tiles in images], rng)
            images = [[np.asarray(tile) for tile in tiles] for tiles in changed]
        test, *composed = (compose_lights(tiles, self.table.layout) for tiles in images)
        single = self.table.layout.num_golden == 1
        return {
            "test": self.normalize(test),
            "golden": self.normalize(composed[0] if single else np.stack(composed)),
        }

    def _names(self, keys: PictureKeys, row: PairRow, change: PairChange | None) -> dict[str, bytes]:
        """The keys of the two pictures; a registered test image depends on its golden, too."""
        height, width = self.table.layout.tile
        said = f"{self._resample.name} {change.variant(width, height) if change else ''}"
        test, golden = self.table.test_files(row), self.table.golden_files(row)
        align = self.reader.align
        try:
            return {
                "test_key": keys.key([*test, *golden], f"{said} registered") if align else keys.key(test, said),
                "golden_key": keys.key(golden, said),
            }
        except OSError as error:
            where = f"{self.table.where(row)}: {error.filename}"
            raise DatasetError(where, error.strerror or "cannot be read", "was it moved while training?") from None

    def _choose_goldens(self, row: PairRow, rng: np.random.Generator) -> list[str]:
        wanted = self.table.layout.num_golden
        if wanted == 1:
            return []
        names = self.table.golden_names(row)
        if self.random_goldens:
            return [str(name) for name in rng.choice(names, wanted, replace=len(names) < wanted)]
        return [names[i % len(names)] for i in range(wanted)]


def collate_pairs(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of pairs, with ``golden_rows`` where its rows share goldens."""
    items = [dict(item) for item in items]
    if "golden_key" not in items[0]:
        batch: dict[str, Any] = default_collate(items)
        ids = batch["golden_id"].tolist()
        # -1 means nobody else's: such a row is a golden of its own
        names = [number if number >= 0 else -1 - row for row, number in enumerate(ids)]
        rows: dict[int, int] = {}
        for row, name in enumerate(names):
            rows.setdefault(name, row)
        return batch | _shared(names, rows) if len(rows) < len(names) else batch
    named = collate_keyed(items, ("test", "golden"))
    places: list[int] = named["golden_place"].tolist()
    batch = default_collate(items)
    return batch | named | _shared(places, {place: place for place in places})


def _shared(names: Sequence[int], rows: dict[int, int]) -> dict[str, Tensor]:
    """``rows``: of every different golden a row that has it."""
    number = {name: place for place, name in enumerate(rows)}
    return {
        "golden_rows": torch.tensor(list(rows.values())),
        "golden_place": torch.tensor([number[name] for name in names]),
    }


def shared_goldens(table: PairTable) -> list[int]:
    """For every row a number that is equal for equal goldens; -1 for a golden that no other row has."""
    keys = [table.golden_key(row) for row in table.rows]
    count = Counter(keys)
    number = {key: place for place, key in enumerate(count)}
    return [number[key] if count[key] > 1 else -1 for key in keys]
