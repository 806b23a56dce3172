"""Galleries beyond memory or one machine: the same as a LanceDB table, on disk or in object storage.

``products.lance`` is a table in the folder beside it, ``s3://bucket/shop/products.lance`` one in a bucket;
``s3://bucket/shop`` means the table ``gallery`` there. A table has one version for each write, and a reader keeps the
one that it opened. The gallery's description is metadata of the column ``vector``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from fiducial.errors import DatasetError, optional
from fiducial.run.console import LOGGER
from mlrecog.gallery_base import Added, AnyGallery, Found, Part, not_there
from mlrecog.gallery_card import GalleryCard
from mlrecog.gallery_table import Entry
from mlrecog.lance_table import (
    COLUMNS,
    META,
    Place,
    Spool,
    card_of,
    chunks,
    entries_of,
    is_in,
    quoted,
    told,
    vectors_of,
)

__all__ = ["LanceGallery"]

_INDEX_FROM = 256
"""Pictures that an index is made of, at least."""
_TIES = 16
"""More neighbours are asked for than wanted: of equally near ones the first are kept, as everywhere."""
_RECALL_AT = 10
_QUERIES = 64
"""Searched at a time."""
_SOURCES = 1000
"""Sources that one condition names."""
_MEASURED = 2**28
"""Distances that measuring an index may take."""


class LanceGallery(AnyGallery):
    """A gallery in a LanceDB table.

    Searched exactly, or with ``exact`` False by its index, if it has one: ``probes`` of its cells are looked into, and
    ``refine`` times as many neighbours as wanted are measured exactly.
    """

    sample = 2_000
    exact = False
    probes = 16
    refine = 10

    def __init__(self, place: Place, table: Any) -> None:
        self.path, self.place, self.table = place.path, place, table
        self.card = card_of(table.schema, place.path)

    # --- reading --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str) -> Self:
        place = Place(path)
        table = place.table()
        if table is None:
            fix = "make one with `gallery build`, or check gallery.path"
            raise DatasetError(place.path, "no gallery there", fix)
        return cls(place, table)

    def __len__(self) -> int:
        with told(self.path):
            return int(self.table.count_rows())

    @property
    def counts(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        with told(self.path):
            for batch in self.table.search().select(["label"]).to_batches():
                found = batch["label"].value_counts()
                total.update(dict(zip(*(found.field(i).to_pylist() for i in (0, 1)), strict=True)))
        return dict(sorted(total.items()))

    def known(self, sources: Iterable[str]) -> dict[str, Entry]:
        wanted = set(sources)
        scan = self.table.search().select(list(COLUMNS))
        if len(wanted) <= _SOURCES:
            scan = scan.where(is_in("source", wanted))
        with told(self.path):
            entries = (entry for batch in scan.to_batches() for entry in entries_of(batch)) if wanted else ()
            return {entry.source: entry for entry in entries if entry.source in wanted}

    def parts(self, most: int | None = None) -> Iterator[Part]:
        columns, count = [*COLUMNS, "vector"], len(self)
        with told(self.path):
            if most is None or most >= count:
                batches = self.table.search().select(columns).to_batches()
            else:
                places = [i * count // most for i in range(most)]
                batches = self.table.take_offsets(places).select(columns).to_arrow().to_batches()
            for batch in batches:
                yield Part(entries_of(batch), torch.from_numpy(vectors_of(batch, self.card.dim)))

    @property
    def is_indexed(self) -> bool:
        """Whether there is an approximate index."""
        with told(self.path):
            return bool(list(self.table.list_indices()))

    def recall(self) -> float | None:
        if not self.is_indexed:
            return None
        count = len(self)
        sample = min(count, max(10, min(200, _MEASURED // count)))
        parts = list(self.parts(sample))
        queries_QD = torch.cat([part.embeddings_ND for part in parts])
        own = [entry.source for part in parts for entry in part.entries]
        exact, found = (
            [{row["source"] for row in rows} - {source} for source, rows in zip(own, each, strict=True)]
            for each in (self._rows(queries_QD, min(_RECALL_AT + 1, count), exact=exact) for exact in (True, False))
        )
        shares = [len(wanted & got) / len(wanted) for wanted, got in zip(exact, found, strict=True) if wanted]
        return sum(shares) / max(1, len(shares))

    def _search(self, queries_QD: Tensor, k: int) -> Found:
        found = self._rows(queries_QD, min(k + _TIES, len(self)))
        nearest = [rows[:k] for rows in found]
        rivals = [self._rival(query, rows) for query, rows in zip(queries_QD, found, strict=True)]
        return Found(
            torch.tensor([[row["distance"] for row in rows] for rows in nearest]).view(len(nearest), k),
            tuple(tuple(row["label"] for row in rows) for rows in nearest),
            tuple(tuple(row["source"] for row in rows) for rows in nearest),
            torch.tensor(rivals),
        )

    def _rival(self, query_D: Tensor, rows: list[dict[str, Any]]) -> float:
        """Distance of the nearest picture of another class than the nearest one's."""
        label = rows[0]["label"]
        others = [row["distance"] for row in rows if row["label"] != label]
        for exact in (self.exact, True):
            if not others:
                found = self._rows(query_D[None], 1, exact=exact, where=f"label != {quoted(label)}", fewer=True)[0]
                others = [row["distance"] for row in found]
        return float(min(others, default=torch.inf))

    def _rows(
        self, queries_QD: Tensor, k: int, *, exact: bool | None = None, where: str = "", fewer: bool = False
    ) -> list[list[dict[str, Any]]]:
        """The k nearest rows of each query, in order; with ``fewer`` what is found, however few."""
        exact = self.exact if exact is None else exact
        found: list[list[dict[str, Any]]] = []
        for queries in torch.split(queries_QD, _QUERIES):
            found += self._ask(queries, k, exact=exact, where=where)
        if not exact and not fewer:  # the cells that were looked into may hold less than was asked for
            for i, rows in enumerate(found):
                if len(rows) < k:
                    found[i] = self._ask(queries_QD[i : i + 1], k, exact=True, where=where)[0]
        return found

    def _ask(self, queries_QD: Tensor, k: int, *, exact: bool, where: str) -> list[list[dict[str, Any]]]:
        search = self.table.search(queries_QD.numpy(), vector_column_name="vector").distance_type("l2").limit(k)
        search = search.select(["number", "label", "source", "vector", "_distance"])
        search = search.bypass_vector_index() if exact else search.nprobes(self.probes).refine_factor(self.refine)
        with told(self.path):
            answer = (search.where(where, prefilter=True) if where else search).to_arrow().combine_chunks()
        vectors = torch.from_numpy(vectors_of(answer, self.card.dim))
        query = answer["query_index"].to_pylist() if "query_index" in answer.column_names else [0] * len(answer)
        distance_M = (2 - 2 * (vectors * queries_QD[query]).sum(1)).clamp(min=0)
        if not bool(distance_M.isfinite().all()):
            raise DatasetError(self.path, "embeddings that are no numbers", "build it anew")
        rows = answer.select(["number", "label", "source"]).to_pylist()
        found: list[list[dict[str, Any]]] = [[] for _ in queries_QD]
        for i, distance, row in zip(query, distance_M.tolist(), rows, strict=True):
            found[i].append({**row, "distance": distance})
        return [sorted(each, key=lambda row: (row["distance"], row["number"])) for each in found]

    # --- writing --------------------------------------------------------------------------------------------------

    @classmethod
    def check_free(cls, path: str, *, overwrite: bool) -> None:
        Place(path).check_free(overwrite=overwrite)

    @classmethod
    def build(cls, path: str, card: GalleryCard, parts: Iterable[Part], *, overwrite: bool = False) -> Self:
        place = Place(path)
        place.check_free(overwrite=overwrite)
        with Spool(card, place.path) as spool:
            spool.write(parts)
            with place.locked(), told(place.path):
                place.check_free(overwrite=overwrite)
                table = place.connect().create_table(place.name, data=spool.reader(), mode=place.mode())
        return cls(place, table)

    def add(self, parts: Iterable[Part]) -> Added:
        with Spool(self.card, self.path) as spool:
            spool.write(parts)
            with self.place.locked(), told(self.path):
                self._refresh()
                known = self.known(spool.last)
                same = {s for s, entry in known.items() if entry.sha256 and entry.sha256 == spool.last[s][1]}
                changed = sorted(known.keys() - same)
                if len(spool.last) > len(same):
                    self.table.add(spool.reader(without=same))
                    for some in chunks(changed, _SOURCES):  # readers may see both for a moment, but never neither
                        self.table.delete(f"({is_in('source', some)}) AND number < {spool.first}")
                    self._tidy()
        return Added(len(spool.last) - len(known), len(changed), len(same))

    def remove(self, *, labels: Sequence[str] = (), sources: Sequence[str] = ()) -> int:
        with self.place.locked(), told(self.path):
            self._refresh()
            counts, there = self.counts, self.known(sources)
            missing = not_there(self.path, "label", [name for name in labels if name not in counts], list(counts))
            missing += not_there(self.path, "source", [name for name in sources if name not in there], ())
            if missing:
                raise DatasetError.of(missing)
            before = len(self)
            wanted = [is_in(name, some) for name, some in (("label", labels), ("source", sources)) if some]
            if wanted:
                self.table.delete(" OR ".join(wanted))
                self._tidy()
            return before - len(self)

    def decide_by(self, threshold: float | None, margin: float | None) -> None:
        with self.place.locked(), told(self.path):
            self._refresh()
            self.card = self.card.deciding(threshold, margin)
            said = json.dumps(self.card.plain())
            self.table.update_field_metadata({"path": "vector", "metadata": {META: said}})

    def make_index(self) -> None:
        """Make an approximate index, of cells and product quantisation."""
        if (count := len(self)) < _INDEX_FROM:
            LOGGER.info("%s: searched exactly: an index is made of %d pictures or more", self.path, _INDEX_FROM)
            return
        LOGGER.info("%s: making the index of %d pictures", self.path, count)
        dim = self.card.dim
        each = next(size for size in (8, 4, 2, 1) if dim % size == 0)
        with self.place.locked(), told(self.path):
            cells = optional("lancedb.index", extra="lancedb").IvfPq(distance_type="l2", num_sub_vectors=dim // each)
            self.table.create_index("vector", config=cells)

    def _refresh(self) -> None:
        """See what is there now, before writing. Raises: CheckpointError when it is another model's by now."""
        self.table.checkout_latest()
        card = card_of(self.table.schema, self.path)
        card.check(self.card.model, self.path)
        self.card = card

    def _tidy(self) -> None:
        """Join small files, and let the index know what was written."""
        try:
            self.table.optimize()
        except (RuntimeError, OSError, ValueError) as error:  # another writer was quicker, and will do it
            LOGGER.debug("%s: not optimised (%s)", self.path, error)
