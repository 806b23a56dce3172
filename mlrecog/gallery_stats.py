"""A look at a gallery: what is in it, what is there twice, what stands among pictures of another class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fiducial.progress import followed
from mlrecog.folders import alike
from mlrecog.gallery_base import AnyGallery, Part

__all__ = ["GalleryStats", "Outlier", "Twins", "look_at"]

_NEIGHBOURS = 10
"""Of each picture that are looked at."""
_LISTED = 1000
_CHUNK = 256


class Twins(NamedTuple):
    """Two pictures that are all but equal."""

    distance: float
    source: str
    label: str
    other_source: str
    other_label: str


class Outlier(NamedTuple):
    """A picture whose nearest one is of another class; ``own_distance``: of its own, None where none is near."""

    distance: float
    source: str
    label: str
    other_source: str
    other_label: str
    own_distance: float | None


@dataclass(frozen=True)
class GalleryStats:
    """What :func:`look_at` found, of ``looked_at`` pictures.

    ``alike``: labels that differ in capitals and blanks alone. ``near_duplicates``: nearest first. ``outliers``: worst
    first. ``recall``: of the approximate index, against exact search; None without one.
    """

    gallery: AnyGallery
    counts: dict[str, int]
    looked_at: int
    alike: list[tuple[str, str]]
    near_duplicates: list[Twins]
    outliers: list[Outlier]
    recall: float | None

    def plain(self) -> dict[str, Any]:
        """As plain data; of long lists the first thousand."""
        card = self.gallery.card
        return {
            "path": self.gallery.path,
            "pictures": sum(self.counts.values()),
            "classes": len(self.counts),
            "counts": self.counts,
            **card.plain(),
            "looked_at": self.looked_at,
            "labels_alike": self.alike,
            "num_near_duplicates": len(self.near_duplicates),
            "near_duplicates": [pair._asdict() for pair in self.near_duplicates[:_LISTED]],
            "num_outliers": len(self.outliers),
            "outliers": [outlier._asdict() for outlier in self.outliers[:_LISTED]],
            "index_recall": self.recall,
        }


def look_at(gallery: AnyGallery, duplicate_distance: float) -> GalleryStats:
    """Counts, near-duplicates (not farther apart than ``duplicate_distance``), outliers, the index's recall.

    Of a large gallery :attr:`AnyGallery.sample` pictures are looked at, each among all.
    """
    counts = gallery.counts
    count = sum(counts.values())
    most = min(count, gallery.sample)
    twins: dict[frozenset[str], Twins] = {}
    odd: list[Outlier] = []
    parts = (some for part in gallery.parts(most) for some in _split(part))
    for part in followed(parts, f"looking at {most} pictures, parts", total=-(-most // _CHUNK)):
        found = gallery.search(part.embeddings_ND, _NEIGHBOURS + 1)
        for place, entry in enumerate(part.entries):
            rows = zip(found.distances_Qk[place].tolist(), found.labels[place], found.sources[place], strict=True)
            others = [row for row in rows if row[2] != entry.source]
            for distance, label, source in others:
                if distance <= duplicate_distance:
                    pair = Twins(distance, entry.source, entry.label, source, label)
                    twins.setdefault(frozenset((entry.source, source)), pair)
            if counts[entry.label] > 1 and others and others[0][1] != entry.label:
                own = next((distance for distance, label, _ in others if label == entry.label), None)
                odd.append(Outlier(others[0][0], entry.source, entry.label, others[0][2], others[0][1], own))
    return GalleryStats(
        gallery,
        counts,
        looked_at=most,
        alike=alike(list(counts)),
        near_duplicates=sorted(twins.values()),
        outliers=sorted(odd, key=lambda outlier: outlier.distance),
        recall=gallery.recall() if count else None,
    )


def _split(part: Part) -> Iterator[Part]:
    for start in range(0, len(part.entries), _CHUNK):
        some = slice(start, start + _CHUNK)
        yield Part(part.entries[some], part.embeddings_ND[some])
