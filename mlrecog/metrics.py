"""How well queries find their class in a gallery.

Shapes: Q queries, N gallery pictures, k neighbours; R of a query is the number of pictures of its class that it can
find. The definitions of precision at 1, R-precision, MAP, MAP@R and MRR are pytorch-metric-learning's (Musgrave et al.
2020, arXiv:2003.08505), whose numbers TAO reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlrecog.neighbours import Engine, Neighbours, nearest_by_chunks

__all__ = ["CUTS", "LISTED", "Retrieval", "average_precision", "clusters", "retrieval"]

CUTS = (1, 5, 10)
"""Numbers of neighbours that recall looks at."""
LISTED = 10
"""Neighbours that are kept of each query, and that NDCG looks at."""
_SORTED = 2**21
"""Distances that are sorted at a time."""

_ITERATIONS, _FAISS_SEED = 20, 1235
"""faiss's k-means: its default number of iterations, and its default seed plus one, of the first centres."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Retrieval:
    """What was found for each query.

    ``each``: a value in 0..1 of each query by metric, NaN where R is 0: such queries do not count. ``own_Q`` and
    ``other_Q``: squared distance to the nearest picture of the query's class, and of any other; infinite where there is
    none. ``found``: the :data:`LISTED` nearest.
    """

    labels_Q: NDArray[np.int64]
    each: Mapping[str, Numbers]
    own_Q: Numbers
    other_Q: Numbers
    found: Neighbours

    @property
    def counted(self) -> NDArray[np.bool_]:
        """The queries whose class can be found at all."""
        return ~np.isnan(self.each["precision_at_1"])

    def by_class(self, name: str) -> dict[int, float]:
        """The mean of a metric over the queries of each class, ascending by label."""
        return self._by_class(self.each[name])

    def mean(self, name: str, *, by_class: bool) -> float:
        """Over classes, each counted once, or over queries; NaN where none counts."""
        return self.mean_of(self.each[name], by_class=by_class)

    def mean_of(self, each_Q: Numbers, *, by_class: bool) -> float:
        """The same of other values of the queries."""
        values = np.array(list(self._by_class(each_Q).values())) if by_class else each_Q[self.counted]
        return float(values.mean()) if len(values) else float("nan")

    def _by_class(self, each_Q: Numbers) -> dict[int, float]:
        labels, place_Q, count = np.unique(self.labels_Q[self.counted], return_inverse=True, return_counts=True)
        means = np.bincount(place_Q, each_Q[self.counted], len(labels)) / count
        return dict(zip(labels.tolist(), means.tolist(), strict=True))

    def mixed_up(self, gallery_labels_N: Tensor) -> list[tuple[int, int, int]]:
        """Pairs of classes by how often a query of the first finds the second first, most often first."""
        places, labels = self.found.places_Qk[:, 0].cpu(), gallery_labels_N.cpu()
        nearest = np.where(places.numpy() >= 0, labels[places].numpy(), -1)
        wrong = self.counted & (nearest != self.labels_Q)
        pairs = Counter(zip(self.labels_Q[wrong].tolist(), nearest[wrong].tolist(), strict=True))
        return [(own, other, count) for (own, other), count in pairs.most_common()]


def retrieval(
    queries_QD: Tensor,
    query_labels_Q: Tensor,
    gallery_ND: Tensor,
    gallery_labels_N: Tensor,
    *,
    left_out_Q: Tensor | None = None,
    engine: Engine = "torch",
) -> Retrieval:
    """Look each query up, exactly, in memory that does not grow with Q x N.

    Both sides are unit rows (:func:`mlrecog.neighbours.unit`) on one device; labels are int64. ``left_out_Q``: the
    place in the gallery that a query must not find, itself, -1 for none. ``engine``: see
    :func:`mlrecog.neighbours.nearest`. Raises: ValueError for an empty side.
    """
    if not len(queries_QD) or not len(gallery_ND):
        raise ValueError(f"{len(queries_QD)} queries, {len(gallery_ND)} pictures in the gallery")
    device = queries_QD.device
    query_labels_Q, gallery_labels_N = query_labels_Q.to(device), gallery_labels_N.to(device)
    findable_Q = _findable(query_labels_Q, gallery_labels_N, left_out_Q)
    cut = max(1, int(findable_Q.max()))
    # one more than the largest class, so that each query also sees its nearest stranger
    k = min(len(gallery_ND), max(cut + 1, LISTED))
    parts: list[dict[str, Tensor]] = []
    for part, found in nearest_by_chunks(queries_QD, gallery_ND, k, left_out_Q=left_out_Q, engine=engine):
        parts.append(_judge(found, query_labels_Q[part], gallery_labels_N, findable_Q[part], cut))
    told = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    listed = Neighbours(told.pop("distances"), told.pop("places"))
    own_Q, other_Q = told.pop("own"), told.pop("other")
    _fill_own(own_Q, queries_QD, query_labels_Q, gallery_ND, gallery_labels_N, left_out_Q, findable_Q)
    lone_Q = (findable_Q == 0).cpu()
    each = {name: values.double().masked_fill(lone_Q, torch.nan).numpy() for name, values in told.items()}
    return Retrieval(query_labels_Q.cpu().numpy(), each, own_Q.double().numpy(), other_Q.double().numpy(), listed)


def _findable(query_labels_Q: Tensor, gallery_labels_N: Tensor, left_out_Q: Tensor | None) -> Tensor:
    """R of each query."""
    most = int(max(query_labels_Q.max(), gallery_labels_N.max())) + 1
    counts_Q = torch.bincount(gallery_labels_N, minlength=most)[query_labels_Q]
    if left_out_Q is None:
        return counts_Q
    left_out_Q = left_out_Q.to(counts_Q.device)
    itself = (left_out_Q >= 0) & (gallery_labels_N[left_out_Q.clamp(min=0)] == query_labels_Q)
    return counts_Q - itself.long()


def _judge(
    found: Neighbours, labels_Q: Tensor, gallery_labels_N: Tensor, findable_Q: Tensor, cut: int
) -> dict[str, Tensor]:
    """The metrics of some queries, from their neighbours."""
    distances_Qk, places_Qk = found
    there_Qk = places_Qk >= 0
    right_Qk = there_Qk & (gallery_labels_N[places_Qk.clamp(min=0)] == labels_Q[:, None])
    relevant_Qk = right_Qk[:, :cut].double()
    rank_k = torch.arange(1, relevant_Qk.shape[1] + 1, device=labels_Q.device, dtype=torch.float64)
    precision_Qk = relevant_Qk.cumsum(1) / rank_k
    R_Q1 = findable_Q.clamp(min=1)[:, None].double()
    within_R_Qk = relevant_Qk * (rank_k <= R_Q1)
    listed_Qk = right_Qk[:, :LISTED].double()
    discount_k = 1 / torch.log2(torch.arange(2, listed_Qk.shape[1] + 2, device=labels_Q.device, dtype=torch.float64))
    ideal_k = torch.cat((discount_k.new_zeros(1), discount_k.cumsum(0)))
    first_Q = relevant_Qk.argmax(1)
    return {
        "precision_at_1": relevant_Qk[:, 0],
        "r_precision": within_R_Qk.sum(1) / R_Q1[:, 0],
        "mean_average_precision": (relevant_Qk * precision_Qk).sum(1) / R_Q1[:, 0],
        "mean_average_precision_at_r": (within_R_Qk * precision_Qk).sum(1) / R_Q1[:, 0],
        "mean_reciprocal_rank": torch.where(relevant_Qk.any(1), 1 / (first_Q + 1).double(), 0.0),
        **{f"recall_at_{number}": right_Qk[:, :number].any(1).double() for number in CUTS},
        "ndcg_at_10": (listed_Qk * discount_k).sum(1) / ideal_k[findable_Q.clamp(1, listed_Qk.shape[1])],
        "own": _first_distance(distances_Qk, right_Qk),
        "other": _first_distance(distances_Qk, there_Qk & ~right_Qk),
        "distances": distances_Qk[:, :LISTED].clone(),
        "places": places_Qk[:, :LISTED].clone(),
    }


def _first_distance(distances_Qk: Tensor, wanted_Qk: Tensor) -> Tensor:
    return distances_Qk.masked_fill(~wanted_Qk, torch.inf).amin(1)


def _fill_own(
    own_Q: Tensor,
    queries_QD: Tensor,
    query_labels_Q: Tensor,
    gallery_ND: Tensor,
    gallery_labels_N: Tensor,
    left_out_Q: Tensor | None,
    findable_Q: Tensor,
) -> None:
    """Of queries that have no picture of their class among their neighbours, the nearest there is, in place."""
    missing_Q = torch.nonzero(own_Q.isinf() & (findable_Q > 0).cpu())[:, 0]
    for label in torch.unique(query_labels_Q.cpu()[missing_Q]).tolist():
        queries = missing_Q[query_labels_Q.cpu()[missing_Q] == label].to(queries_QD.device)
        places = torch.nonzero(gallery_labels_N == label)[:, 0]
        distance = (2 - 2 * queries_QD[queries].float() @ gallery_ND[places].float().T).clamp(min=0)
        if left_out_Q is not None:
            distance.masked_fill_(left_out_Q.to(places.device)[queries][:, None] == places, torch.inf)
        own_Q[queries.cpu()] = distance.amin(1).cpu()


def average_precision(
    queries_QD: Tensor,
    query_labels_Q: Tensor,
    gallery_ND: Tensor,
    gallery_labels_N: Tensor,
    *,
    left_out_Q: Tensor | None = None,
) -> Numbers:
    """Average precision over the whole gallery of each query, NaN where R is 0: every distance is looked at."""
    rows = max(1, _SORTED // len(gallery_ND))
    found = []
    for start in range(0, len(queries_QD), rows):
        part = slice(start, start + rows)
        distance_QN = 2 - 2 * queries_QD[part].float() @ gallery_ND.float().T
        if left_out_Q is not None:
            place_Q = left_out_Q[part].to(distance_QN.device)
            row = torch.nonzero(place_Q >= 0)[:, 0]
            distance_QN[row, place_Q[row]] = torch.inf
        order_QN = distance_QN.argsort(dim=1, stable=True)
        right_QN = gallery_labels_N.to(order_QN.device)[order_QN] == query_labels_Q[part].to(order_QN.device)[:, None]
        if left_out_Q is not None:
            right_QN &= order_QN != place_Q[:, None]
        right_QN = right_QN.double()
        rank_N = torch.arange(1, right_QN.shape[1] + 1, device=right_QN.device, dtype=torch.float64)
        found.append((right_QN * right_QN.cumsum(1) / rank_N).sum(1) / right_QN.sum(1))  # 0 / 0 is NaN
    numbers: Numbers = torch.cat(found).cpu().numpy()
    return numbers


def clusters(embeddings_QD: Tensor, labels_Q: Tensor) -> dict[str, float]:
    """AMI and NMI of a k-means clustering with the classes; as many clusters as there are classes.

    scikit-learn's k-means, from the centres that faiss begins with and in as many iterations, so that the numbers are
    TAO's. (Of more than 256 queries to a class faiss looks at a sample; here all of them count.)
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    labels, x = labels_Q.cpu().numpy(), embeddings_QD.float().cpu().numpy()
    number = len(np.unique(labels))
    means = KMeans(number, init=x[_first_centres(len(x), number)], n_init=1, max_iter=_ITERATIONS, tol=0)
    assigned = means.fit_predict(x)
    return {
        "AMI": float(adjusted_mutual_info_score(labels, assigned)),
        "NMI": float(normalized_mutual_info_score(labels, assigned)),
    }


def _first_centres(total: int, number: int) -> list[int]:
    """The beginning of faiss's permutation of ``total`` places: a shuffle by the Mersenne twister."""
    draws = np.random.RandomState(_FAISS_SEED).randint(0, 2**32, number, dtype=np.uint32)
    places = list(range(total))
    for place, draw in enumerate(draws.tolist()):
        if place < total - 1:
            other = place + draw % (total - place)
            places[place], places[other] = places[other], places[place]
    return places[:number]
