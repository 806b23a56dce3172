"""What a stage found: embeddings of each side, what is measured on them, and answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fiducial.prediction import Kpis
from mlrecog.folders import Sample
from mlrecog.gallery import UNKNOWN, Found
from mlrecog.metrics import Retrieval, average_precision, retrieval
from mlrecog.neighbours import Engine

__all__ = ["Answers", "Embedded", "Labelled"]


@dataclass(frozen=True)
class Labelled:
    """One side of a stage: its pictures, and what its classes are shown as."""

    name: str
    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    cached: tuple[str, str] = ("", "")
    """A folder of the cache, and what the user calls it; see :func:`mlrecog.splits.cached_as`."""

    def called(self, path: str | Path) -> str:
        """A picture as results name it: not by the folder of a cache."""
        folder, name = self.cached
        return f"{name}{str(path)[len(folder) :]}" if folder and str(path).startswith(folder) else str(path)

    @cached_property
    def labels(self) -> Tensor:
        """The class of each picture, int64."""
        return torch.tensor([sample.label for sample in self.samples])


@dataclass(frozen=True)
class Embedded:
    """Unit embeddings ``(N, D)`` of each side, in the order of its pictures."""

    sides: tuple[Labelled, ...]
    embeddings: tuple[Tensor, ...]
    same: bool = False
    engine: Engine = "torch"

    @property
    def left_out(self) -> Tensor | None:
        """Of one set that is gallery and queries, the picture that each must not find: itself."""
        return torch.arange(len(self.embeddings[1])) if self.same else None

    @cached_property
    def retrieval(self) -> Retrieval:
        """What the queries find in the gallery."""
        gallery, queries = self.sides
        return retrieval(
            self.embeddings[1],
            queries.labels,
            self.embeddings[0],
            gallery.labels,
            left_out_Q=self.left_out,
            engine=self.engine,
        )

    def whole_map(self, by_class: bool) -> float:
        """Mean average precision over the whole gallery."""
        gallery, queries = self.sides
        each = average_precision(
            self.embeddings[1], queries.labels, self.embeddings[0], gallery.labels, left_out_Q=self.left_out
        )
        return self.retrieval.mean_of(each, by_class=by_class)


@dataclass(frozen=True)
class Answers:
    """What inference found for each picture, and what follows: its class, or that it is of none."""

    paths: tuple[Path, ...]
    found: Found
    decisions: tuple[str, ...]
    sides: tuple[Labelled, ...] = ()

    def called(self, path: str | Path) -> str:
        """A picture, also of the gallery, as results name it."""
        return next((name for side in self.sides if (name := side.called(path)) != str(path)), str(path))

    @property
    def num_unknown(self) -> int:
        """Pictures of no class of the gallery."""
        return sum(decision == UNKNOWN for decision in self.decisions)

    @property
    def kpis(self) -> Kpis:
        """The numbers of ``inference``."""
        return {"pictures": float(len(self.paths)), "unknown": float(self.num_unknown)}
