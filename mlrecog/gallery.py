"""The gallery that a user keeps: a folder of embeddings and a table of whose they are; or a LanceDB table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fiducial.data.remote import is_remote
from fiducial.errors import DatasetError
from fiducial.redact import public_url
from mlrecog.gallery_base import UNKNOWN, Added, AnyGallery, Found, Part, exclusive, not_there
from mlrecog.gallery_card import GalleryCard, ModelFacts
from mlrecog.gallery_files import LOCK, State, check_free, move_next, read, write
from mlrecog.gallery_table import Entry
from mlrecog.neighbours import Engine, Neighbours, nearest

__all__ = ["UNKNOWN", "Added", "AnyGallery", "Found", "Gallery", "GalleryCard", "ModelFacts", "Part"]
__all__ += ["gallery_class", "open_gallery"]

_CHUNK = 4096
_LOOKED_AT = 64
"""Neighbours among which a picture of another class is looked for first."""


def open_gallery(path: str) -> AnyGallery:
    """The gallery at ``path``: a folder, or a LanceDB table (a folder ``*.lance``, an ``s3://`` address).

    Raises: DatasetError when there is none, or it is damaged; MissingDependencyError without lancedb.
    """
    return gallery_class(path).open(path)


def gallery_class(path: str) -> type[AnyGallery]:
    """What keeps a gallery with this path. Raises: DatasetError for an address that nothing here writes to."""
    if path.startswith("s3://") or path.rstrip("/").endswith(".lance"):
        from mlrecog.lance import LanceGallery

        return LanceGallery
    if is_remote(path):
        fix = "use a folder, a folder *.lance, or s3://bucket/folder"
        raise DatasetError("gallery.path", f"no gallery is kept at {public_url(path)}", fix)
    return Gallery


class Gallery(AnyGallery):
    """A gallery in memory, kept in a folder. ``engine`` finds the neighbours."""

    engine: Engine = "torch"

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.path = folder, str(folder)
        self._show(state)

    def _show(self, state: State) -> None:
        self.card, self.entries, self.embeddings_ND = state
        for name in ("_counts", "_places", "_labels"):
            self.__dict__.pop(name, None)

    # --- reading --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str) -> Self:
        folder = Path(path).expanduser()
        return cls(folder, read(folder))

    @classmethod
    def of_folders(cls, labels: Sequence[str], sources: Sequence[str], embeddings_ND: Tensor) -> Self:
        """A gallery that is searched, and kept nowhere: unit rows with their labels and sources."""
        model = ModelFacts("", (0, 0), (), ())
        entries = tuple(Entry(label, source) for label, source in zip(labels, sources, strict=True))
        return cls(Path(), State(GalleryCard(model, embeddings_ND.shape[1]), entries, embeddings_ND))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def counts(self) -> dict[str, int]:
        return self._counts

    @cached_property
    def _counts(self) -> dict[str, int]:
        return dict(sorted(Counter(entry.label for entry in self.entries).items()))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {entry.source: place for place, entry in enumerate(self.entries)}

    @cached_property
    def _labels(self) -> Tensor:
        numbers = {label: number for number, label in enumerate(self.counts)}
        return torch.tensor([numbers[entry.label] for entry in self.entries])

    def known(self, sources: Iterable[str]) -> dict[str, Entry]:
        return {source: self.entries[self._places[source]] for source in sources if source in self._places}

    def parts(self, most: int | None = None) -> Iterator[Part]:
        count = len(self) if most is None else min(most, len(self))
        places = [i * len(self) // count for i in range(count)]
        for start in range(0, count, _CHUNK):
            part = places[start : start + _CHUNK]
            yield Part([self.entries[place] for place in part], self.embeddings_ND[part])

    def _search(self, queries_QD: Tensor, k: int) -> Found:
        found = nearest(queries_QD, self.embeddings_ND, min(len(self), max(k, _LOOKED_AT)), engine=self.engine)
        rival_Q = self._rivals(queries_QD, found)
        rows = [[self.entries[place] for place in places] for places in found.places_Qk[:, :k].tolist()]
        return Found(
            found.distances_Qk[:, :k],
            tuple(tuple(entry.label for entry in row) for row in rows),
            tuple(tuple(entry.source for entry in row) for row in rows),
            rival_Q,
        )

    def _rivals(self, queries_QD: Tensor, found: Neighbours) -> Tensor:
        """Distance of each query's nearest picture of another class than the nearest one's."""
        label_Qk = self._labels[found.places_Qk]
        other_Qk = label_Qk != label_Qk[:, :1]
        rival_Q = found.distances_Qk.masked_fill(~other_Qk, torch.inf).amin(1)
        if len(self.counts) == 1:
            return rival_Q
        for label in torch.unique(label_Qk[rival_Q.isinf(), 0]):  # classes with many pictures nearby
            row_R = torch.nonzero(rival_Q.isinf() & (label_Qk[:, 0] == label))[:, 0]
            others_MD = self.embeddings_ND[self._labels != label]
            rival_Q[row_R] = nearest(queries_QD[row_R], others_MD, 1).distances_Qk[:, 0]
        return rival_Q

    # --- writing --------------------------------------------------------------------------------------------------

    @classmethod
    def check_free(cls, path: str, *, overwrite: bool) -> None:
        check_free(Path(path).expanduser(), overwrite=overwrite)

    @classmethod
    def build(cls, path: str, card: GalleryCard, parts: Iterable[Part], *, overwrite: bool = False) -> Self:
        folder = Path(path).expanduser()
        check_free(folder, overwrite=overwrite)
        entries, embeddings_ND, _ = _merged((), torch.empty(0, card.dim), _checked(parts, card, path))
        with exclusive(folder / LOCK, path):
            move_next(folder)
            check_free(folder, overwrite=overwrite)
            state = State(card, entries, embeddings_ND)
            write(folder, state)
        return cls(folder, state)

    def add(self, parts: Iterable[Part]) -> Added:
        given = _checked(parts, self.card, self.path)
        with exclusive(self.folder / LOCK, self.path):
            card, entries, embeddings_ND = self._current()
            entries, embeddings_ND, added = _merged(entries, embeddings_ND, given)
            if added.new or added.replaced:
                self._keep(State(card, entries, embeddings_ND))
        return added

    def remove(self, *, labels: Sequence[str] = (), sources: Sequence[str] = ()) -> int:
        with exclusive(self.folder / LOCK, self.path):
            card, entries, embeddings_ND = self._current()
            self._show(State(card, entries, embeddings_ND))
            missing = not_there(self.path, "label", [n for n in labels if n not in self.counts], list(self.counts))
            there = list(self._places)
            missing += not_there(self.path, "source", [n for n in sources if n not in self._places], there)
            if missing:
                raise DatasetError.of(missing)
            gone_labels, gone_sources = set(labels), set(sources)
            kept = [i for i, e in enumerate(entries) if e.label not in gone_labels and e.source not in gone_sources]
            if len(kept) < len(entries):
                self._keep(State(card, tuple(entries[i] for i in kept), embeddings_ND[kept]))
        return len(entries) - len(kept)

    def decide_by(self, threshold: float | None, margin: float | None) -> None:
        with exclusive(self.folder / LOCK, self.path):
            state = self._current()
            self._keep(state._replace(card=state.card.deciding(threshold, margin)))

    def _current(self) -> State:
        """What is there now, for a writer that holds the lock. Raises: CheckpointError when it was built anew."""
        move_next(self.folder)
        state = read(self.folder)
        state.card.check(self.card.model, self.path)
        return state

    def _keep(self, state: State) -> None:
        write(self.folder, state)
        self._show(state)


def _checked(parts: Iterable[Part], card: GalleryCard, where: str) -> list[Part]:
    return [part.checked(card.dim, where) for part in parts]


def _merged(
    entries: Sequence[Entry], embeddings_ND: Tensor, parts: Sequence[Part]
) -> tuple[tuple[Entry, ...], Tensor, Added]:
    """The gallery with more pictures: new ones at the end, those of a source that is there in its place."""
    rows: list[Entry] = list(entries)
    places = {entry.source: place for place, entry in enumerate(rows)}
    taken: dict[int, int] = {}
    """Place in the gallery -> row of the given embeddings."""
    known = 0
    for number, entry in enumerate(entry for part in parts for entry in part.entries):
        place = places.setdefault(entry.source, len(rows))
        if place == len(rows):
            rows.append(entry)
        elif entry.sha256 and rows[place].sha256 == entry.sha256:
            known += 1
            continue
        else:
            rows[place] = entry
        taken[place] = number
    joined_ND = torch.cat([embeddings_ND, embeddings_ND.new_empty(len(rows) - len(entries), embeddings_ND.shape[1])])
    if taken:
        given_MD = torch.cat([part.embeddings_ND for part in parts])
        joined_ND[list(taken)] = given_MD[list(taken.values())]
    replaced = sum(place < len(entries) for place in taken)
    return tuple(rows), joined_ND, Added(len(rows) - len(entries), replaced, known)
