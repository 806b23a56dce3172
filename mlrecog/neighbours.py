"""Exact nearest neighbours of unit vectors, in bounded memory on any device.

Shapes: Q queries, N gallery places, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fiducial.errors import optional
from fiducial.ops.linear import linear_into

__all__ = ["Engine", "Neighbours", "nearest", "nearest_by_chunks", "unit"]

Engine = Literal["torch", "faiss"]

_BLOCK = 32
"""Columns of which the smallest is found first; a multiple of what matrix kernels compute at once."""
_DISTANCES = 2**21
"""So many distances are held at a time: 8 MiB, in memory used again, so that it stays in a processor's cache."""
_FEWEST = 256
"""Queries at a time at least: with fewer, matrix kernels are slow."""
_AT_ONCE = 8192
"""Queries at a time on a GPU, which has no such cache and waits for every chunk."""
_FOUND = 2**23
"""So many neighbours are found at a time."""


class Neighbours(NamedTuple):
    """The k nearest gallery places of each query, nearest first; of equal distances the smaller place first.

    ``distances_Qk``: float32, squared L2 of unit vectors (0..4). ``places_Qk``: int64. Where fewer than k places were
    left to find, the distance is infinite and the place -1.
    """

    distances_Qk: Tensor
    places_Qk: Tensor


def unit(x_ND: Tensor) -> Tensor:
    """Rows of length 1, float32; a row of zeros stays one."""
    return F.normalize(x_ND.float(), dim=1)


def nearest(
    queries_QD: Tensor,
    gallery_ND: Tensor,
    k: int,
    *,
    left_out_Q: Tensor | None = None,
    engine: Engine = "torch",
) -> Neighbours:
    """The k nearest of the gallery, exactly. Both sides are unit rows (:func:`unit`) of finite numbers on one device.

    ``k``: 1..N; the caller cuts what a user asked for to the gallery's size, and says so.
    ``left_out_Q``: int64, the place that a query must not find (itself), -1 for none.
    ``engine``: ``"faiss"`` searches with faiss's exact index on the CPU; of equal distances it takes any.

    Raises: ValueError for another k; MissingDependencyError when faiss is asked for and not there.
    """
    parts = list(nearest_by_chunks(queries_QD, gallery_ND, k, left_out_Q=left_out_Q, engine=engine))
    if not parts:
        return Neighbours(*(queries_QD.new_empty(0, k, dtype=dtype) for dtype in (torch.float32, torch.int64)))
    return Neighbours(*(torch.cat(tensors) for tensors in zip(*(found for _, found in parts), strict=True)))


def nearest_by_chunks(
    queries_QD: Tensor,
    gallery_ND: Tensor,
    k: int,
    *,
    left_out_Q: Tensor | None = None,
    engine: Engine = "torch",
) -> Iterator[tuple[slice, Neighbours]]:
    """The same a few queries at a time, with the slice of queries: for a k so large that Q × k would not fit."""
    if not 1 <= k <= len(gallery_ND):
        raise ValueError(f"k is {k}, for a gallery of {len(gallery_ND)}")
    # few neighbours of many columns are found quickly, in blocks: four times as many blocks as neighbours
    on_cpu = queries_QD.device.type == "cpu"
    columns = next((columns for columns in (2048, 4096) if on_cpu and 4 * k * _BLOCK <= columns), 16384)
    rows = max(1, min(max(_DISTANCES // columns, _FEWEST if on_cpu else _AT_ONCE), _FOUND // k))
    index = _faiss_index(gallery_ND) if engine == "faiss" else None
    for start in range(0, len(queries_QD), rows):
        part = slice(start, min(start + rows, len(queries_QD)))
        left_out = None if left_out_Q is None else left_out_Q[part].to(queries_QD.device)
        with torch.no_grad(), _full_precision(queries_QD.device.type):
            if index is None:
                found = _search(queries_QD[part].float(), gallery_ND, k, left_out, columns)
            else:
                found = _search_faiss(index, queries_QD[part], k, left_out)
        yield part, found  # outside: what the caller does between two chunks has its own precision and gradients


def _search(queries_QD: Tensor, gallery_ND: Tensor, k: int, left_out_Q: Tensor | None, columns: int) -> Neighbours:
    """Chunk by chunk of the gallery; what is best so far is merged with the best of the next chunk.

    A chunk in which nothing is nearer than the k-th best so far has nothing for that query: soon that is so for most.
    """
    best = Neighbours(
        queries_QD.new_full((len(queries_QD), k), torch.inf),
        torch.full((len(queries_QD), k), -1, device=queries_QD.device),
    )
    minus_two_QD = queries_QD * -2
    space = queries_QD.new_empty(len(queries_QD) * _whole_blocks(min(columns, len(gallery_ND))))
    for start in range(0, len(gallery_ND), columns):
        chunk_MD = gallery_ND[start : start + columns].float()
        distance_QM = _distances(minus_two_QD, chunk_MD, space)
        if left_out_Q is not None:
            row = torch.nonzero((left_out_Q >= start) & (left_out_Q < start + len(chunk_MD)))[:, 0]
            distance_QM[row, left_out_Q[row] - start] = torch.inf
        block_QB = torch.unflatten(distance_QM, 1, (-1, _BLOCK)).amin(2).clamp_(min=0)
        nearer_Q = (block_QB < best.distances_Qk[:, -1:]).sum(1)  # blocks in which something is
        row_T = torch.nonzero(nearer_Q)[:, 0]
        if len(row_T):
            found = _best_columns(distance_QM, block_QB, row_T, k, min(k, int(nearer_Q.max())))
            found = Neighbours(found.distances_Qk, found.places_Qk + start)
            merged = _merge(Neighbours(*(part[row_T] for part in best)), found, k)
            for whole, part in zip(best, merged, strict=True):
                whole[row_T] = part
    return Neighbours(best.distances_Qk, best.places_Qk.masked_fill_(best.distances_Qk.isinf(), -1))


def _whole_blocks(columns: int) -> int:
    return columns + -columns % _BLOCK


def _distances(minus_two_QD: Tensor, chunk_MD: Tensor, space: Tensor) -> Tensor:
    """2 - 2 cos, for M columns, then infinite ones up to whole blocks; in ``space``, where that is faster.

    A matrix kernel may add up the columns of an unfinished block in another order: then two equal pictures would not
    be equally near.
    """
    count, width = len(chunk_MD), _whole_blocks(len(chunk_MD))
    padded_MD = F.pad(chunk_MD, (0, 0, 0, width - count)) if width > count else chunk_MD
    into_QM = space[: len(minus_two_QD) * width].view(-1, width)
    distance_QM = linear_into(into_QM, minus_two_QD, padded_MD, minus_two_QD.new_full((width,), 2.0))
    distance_QM[:, count:] = torch.inf
    return distance_QM


def _best_columns(distance_QM: Tensor, block_QB: Tensor, row_T: Tensor, k: int, blocks_k: int) -> Neighbours:
    """The (at most) k smallest of some rows, negative ones (rounding) as 0.

    They lie in the ``blocks_k`` blocks whose smallest members (``block_QB``) are smallest: most columns are looked at
    once.
    """
    blocks = block_QB.shape[1]
    if 4 * blocks_k > blocks:
        return _smallest(distance_QM[row_T].clamp_(min=0), min(k, distance_QM.shape[1]))
    block_Tk = _smallest(block_QB[row_T], blocks_k).places_Qk.sort(dim=1).values
    place_T = (block_Tk + row_T[:, None] * blocks).flatten()
    members = distance_QM.view(-1, _BLOCK).index_select(0, place_T).view(len(row_T), -1)
    found = _smallest(members.clamp_(min=0), min(k, members.shape[1]))
    block = block_Tk.gather(1, found.places_Qk // _BLOCK)
    return Neighbours(found.distances_Qk, block * _BLOCK + found.places_Qk % _BLOCK)


def _merge(best: Neighbours, found: Neighbours, k: int) -> Neighbours:
    """The k nearest of both; all places of the first are before those of the second."""
    distances, places = (torch.cat(both, dim=1) for both in zip(best, found, strict=True))
    kept = _smallest(distances, min(k, distances.shape[1]))
    return Neighbours(kept.distances_Qk, places.gather(1, kept.places_Qk))


def _smallest(value_QM: Tensor, k: int) -> Neighbours:
    """The k smallest of each row, ascending, and their columns; of equal ones the first columns, which topk ignores."""
    value_Qk, column_Qk = value_QM.topk(min(k + 1, value_QM.shape[1]), dim=1, largest=False)
    tied_Qk = value_Qk[:, 1:] == value_Qk[:, :-1]
    value_Qk, column_Qk = value_Qk[:, :k], column_Qk[:, :k]
    row_T = torch.nonzero(tied_Qk[:, : k - 1].any(1))[:, 0]
    if len(row_T):
        column_Tk, order_Tk = column_Qk[row_T].sort(dim=1)
        order_Tk = value_Qk[row_T].gather(1, order_Tk).sort(dim=1, stable=True).indices
        column_Qk[row_T] = column_Tk.gather(1, order_Tk)
    torn_T = torch.nonzero(tied_Qk[:, k - 1 :].any(1))[:, 0]  # some of the equal ones were taken and some left
    if len(torn_T):
        column_Qk[torn_T] = value_QM[torn_T].sort(dim=1, stable=True).indices[:, :k]
    return Neighbours(value_Qk, column_Qk)


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Float32 products, whatever a run allows its network: TF32 would change who is near."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _faiss_index(gallery_ND: Tensor):  # type: ignore[no-untyped-def]
    faiss = optional("faiss", extra="faiss")
    index = faiss.IndexFlatL2(gallery_ND.shape[1])
    index.add(gallery_ND.float().cpu().numpy())
    return index


def _search_faiss(index, queries_QD: Tensor, k: int, left_out_Q: Tensor | None) -> Neighbours:  # type: ignore[no-untyped-def]
    """One more than k is asked for where a place is left out; it is pushed to the end."""
    more = min(k + (left_out_Q is not None), index.ntotal)
    distances, places = (torch.from_numpy(found) for found in index.search(queries_QD.float().cpu().numpy(), more))
    distances, places = distances.to(queries_QD.device), places.to(queries_QD.device)
    if left_out_Q is not None:
        hit = places == left_out_Q[:, None]
        distances, order = distances.masked_fill(hit, torch.inf).sort(dim=1, stable=True)
        places = places.masked_fill(hit, -1).gather(1, order)
    return Neighbours(distances[:, :k].clamp(min=0), places[:, :k])
