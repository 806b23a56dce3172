"""What every gallery can do, wherever it is kept.

Shapes: Q queries, N pictures of the gallery, D dimensions, k neighbours. Distances are squared L2 of unit vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fiducial.errors import DatasetError, Problem
from fiducial.machine import explained
from fiducial.run.console import LOGGER
from mlrecog.folders import namesake
from mlrecog.gallery_card import GalleryCard
from mlrecog.gallery_table import Entry, check_entries, now
from mlrecog.neighbours import unit
from mlrecog.open_set import is_known

__all__ = ["UNKNOWN", "Added", "AnyGallery", "Found", "Part", "exclusive", "not_there"]

UNKNOWN = "unknown"
"""The decision for a picture of no class of the gallery."""
_WAIT_S = 600.0
"""How long a writer waits for another one."""


class Part(NamedTuple):
    """Some pictures and their embeddings ``(N, D)``, of any length."""

    entries: Sequence[Entry]
    embeddings_ND: Tensor

    @classmethod
    def of(cls, labels: Sequence[str], sources: Sequence[str], embeddings_ND: Tensor) -> Part:
        """Of labels and sources alone."""
        if not len(labels) == len(sources) == len(embeddings_ND):
            raise ValueError(f"{len(labels)} labels, {len(sources)} sources, {len(embeddings_ND)} embeddings")
        return cls([Entry(label, source) for label, source in zip(labels, sources, strict=True)], embeddings_ND)

    def checked(self, dim: int, where: str) -> Part:
        """With unit float32 embeddings on the CPU and the time at which they came.

        Raises: DatasetError naming each picture whose embedding or name cannot be kept.
        """
        x = self.embeddings_ND.detach().float().cpu()
        if x.ndim != 2 or x.shape[1] != dim or len(x) != len(self.entries):
            found = f"embeddings {tuple(x.shape)} for {len(self.entries)} pictures of a gallery of {dim} numbers each"
            raise DatasetError(where, found, "embed with the gallery's model")
        check_entries(self.entries, where)
        length_N = x.norm(dim=1)
        if bad := torch.nonzero(~(length_N.isfinite() & (length_N > 0)))[:, 0].tolist():
            fix = "look at the model: it gives no usable numbers for it"
            raise DatasetError.of(Problem(self.entries[i].source, "an embedding of no direction", fix) for i in bad)
        time = now()
        entries = [Entry(e.label, e.source, e.sha256, e.added or time) for e in self.entries]
        return Part(entries, unit(x))


@dataclass(frozen=True)
class Added:
    """What came of pictures: ``new`` ones, ``replaced`` (their file has changed), ``known`` (left as they are)."""

    new: int = 0
    replaced: int = 0
    known: int = 0


@dataclass(frozen=True)
class Found:
    """What a search found, of each query, nearest first: ``k`` pictures, or as many as the gallery has.

    ``rival_Q``: distance of the nearest picture of another class than the nearest one's; infinite without one.
    """

    distances_Qk: Tensor
    labels: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    rival_Q: Tensor

    def decisions(self, threshold: float | None, margin: float | None) -> list[str]:
        """The class of the nearest picture, or :data:`UNKNOWN`.

        Unknown is what is farther than ``threshold``, and what has another class nearer than ``margin`` beyond it.
        """
        known_Q = is_known(self.distances_Qk[:, 0], self.rival_Q, threshold, margin)
        return [names[0] if known else UNKNOWN for names, known in zip(self.labels, known_Q.tolist(), strict=True)]


class AnyGallery(ABC):
    """Reference embeddings with their labels and sources. An open gallery shows what it was when it was opened, and
    what was written through it since; writers exclude each other."""

    path: str
    card: GalleryCard
    sample: ClassVar[int] = 50_000
    """Pictures that a look at a gallery searches for, at most."""

    @classmethod
    @abstractmethod
    def check_free(cls, path: str, *, overwrite: bool) -> None:
        """Raises: DatasetError when a gallery at ``path`` would take the place of something."""

    @classmethod
    @abstractmethod
    def open(cls, path: str) -> Self:
        """The gallery at a path. Raises: DatasetError when there is none, or it is damaged."""

    @classmethod
    @abstractmethod
    def build(cls, path: str, card: GalleryCard, parts: Iterable[Part], *, overwrite: bool = False) -> Self:
        """A new gallery, complete or not at all. Raises: DatasetError where one is, unless ``overwrite``."""

    @abstractmethod
    def __len__(self) -> int:
        """Pictures."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Pictures of each class, by label in order."""

    @abstractmethod
    def known(self, sources: Iterable[str]) -> dict[str, Entry]:
        """Those of some pictures that are there, by source."""

    @abstractmethod
    def parts(self, most: int | None = None) -> Iterator[Part]:
        """All pictures in order, or at most so many, spread over the gallery."""

    @abstractmethod
    def add(self, parts: Iterable[Part]) -> Added:
        """Add pictures, all or none. One whose source is there replaces it; with the same SHA-256 it is left.

        Raises: DatasetError; StorageError.
        """

    @abstractmethod
    def remove(self, *, labels: Sequence[str] = (), sources: Sequence[str] = ()) -> int:
        """Remove whole classes and single pictures; how many went.

        Raises: DatasetError naming every label and source that is not there; then nothing is removed.
        """

    @abstractmethod
    def decide_by(self, threshold: float | None, margin: float | None) -> None:
        """Keep another threshold and margin, where they are not None."""

    def recall(self) -> float | None:
        """Share of the exact search's neighbours that the index finds, of a sample; None where search is exact."""
        return None

    @abstractmethod
    def _search(self, queries_QD: Tensor, k: int) -> Found: ...

    def search(self, queries_QD: Tensor, k: int) -> Found:
        """The k nearest pictures of each query: embeddings of any length. Raises: DatasetError."""
        if not len(self):
            raise DatasetError(self.path, "an empty gallery", "add pictures to it")
        if k < 1:
            raise ValueError(f"k is {k}")
        x = queries_QD.detach().float().cpu()
        if x.ndim != 2 or x.shape[1] != self.card.dim:
            found = f"queries {tuple(x.shape)} for a gallery of {self.card.dim} numbers each"
            raise DatasetError(self.path, found, "embed with the gallery's model")
        if not bool(x.isfinite().all()):
            raise DatasetError(self.path, "queries that are no numbers", "look at the model and the pictures")
        return self._search(unit(x), min(k, len(self)))


def not_there(where: str, what: str, missing: Sequence[str], there: Sequence[str]) -> list[Problem]:
    """Labels or sources (``what``) that a gallery lacks."""
    problems = []
    for name in missing:
        close = namesake(name, there) or next(iter(get_close_matches(name, there, n=1)), None)
        fix = f"did you mean {close!r}?" if close else "the stats of the gallery and its table list what is there"
        problems.append(Problem(where, f"no {what} {name!r}", fix))
    return problems


@contextmanager
def exclusive(lock_path: Path, where: str) -> Iterator[None]:
    """Hold a gallery against other writers, of this machine and, where the file system passes locks on, of others.

    Raises: DatasetError when another one holds it for too long, or nothing can be written there; StorageError.
    """
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquired(FileLock(lock_path), where)
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        known = explained(error, lock_path.parent)
        fix = "check the folder and its permissions"
        raise known or DatasetError(where, f"cannot be written ({error.strerror or error})", fix) from error


def _acquired(lock: FileLock, where: str) -> FileLock:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOGGER.info("%s: waiting for another process that writes it", where)
        try:
            lock.acquire(timeout=_WAIT_S)
        except Timeout:
            found = f"another process has been writing it for {_WAIT_S / 60:.0f} minutes"
            raise DatasetError(where, found, "wait for it, or end it") from None
    except NotImplementedError:
        LOGGER.warning("%s cannot be locked: let no second process write it", where)
    return lock
