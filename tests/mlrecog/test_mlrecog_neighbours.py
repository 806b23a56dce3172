"""The exact search, against a full matrix of float64 distances."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fiducial.errors import MissingDependencyError
from mlrecog import neighbours
from mlrecog.neighbours import nearest, nearest_by_chunks, unit

COLUMNS, COLUMNS_OF_MANY, FEW, FEWEST = 4096, 16384, 32, 16
"""Gallery places that are looked at at a time, for up to ``FEW`` neighbours (half as many up to ``FEWEST``) and for
more."""


def drawn(count, seed=0, dim=24):
    return unit(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def halves(count, seed=0, dim=8):
    """Unit vectors whose products are multiples of 1/4: exact in any order of adding, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, dim, generator=generator).topk(4, dim=1).indices
    signs = torch.randint(0, 2, (count, 4), generator=generator) - 0.5
    return torch.zeros(count, dim).scatter(1, places, signs)


def by_hand(queries, gallery, k, left_out=None):
    """Distances and places by the definition; of equal distances the smaller place first."""
    distance = 2 - 2 * queries.double() @ gallery.double().T
    if left_out is not None:
        row = torch.nonzero(left_out >= 0)[:, 0]
        distance[row, left_out[row]] = torch.inf
    sorted_distance, place = distance.sort(dim=1, stable=True)
    place[sorted_distance.isinf()] = -1
    return sorted_distance[:, :k], place[:, :k]


def assert_is(found, expected):
    distances, places = expected
    assert (found.distances_Qk.dtype, found.places_Qk.dtype) == (torch.float32, torch.int64)
    assert torch.equal(found.distances_Qk.double(), distances)
    assert torch.equal(found.places_Qk, places)


def assert_nearest(found, queries, gallery, k, left_out=None):
    """As near as the nearest, and at the places that it names: which of two is first may be a matter of rounding."""
    wanted, _ = by_hand(queries, gallery, k, left_out)
    torch.testing.assert_close(found.distances_Qk, wanted.float())
    real = found.places_Qk >= 0
    at = 2 - 2 * (queries.double()[:, None] * gallery.double()[found.places_Qk.clamp(min=0)]).sum(2)
    torch.testing.assert_close(found.distances_Qk[real], at[real].float())
    assert all(len(set(row)) == len(row) for row in (places[places >= 0].tolist() for places in found.places_Qk))
    assert torch.equal(real, wanted.isfinite())


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside hold at a time."""

    def __init__(self):
        super().__init__()
        self.bytes, self._held = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                storage = x.untyped_storage()
                self._held[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {pointer: entry for pointer, entry in self._held.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._held.values()))
        return made


class TestExact:
    def test_on_a_circle(self):
        angle = torch.tensor([0.0, 180, 60, 90]).deg2rad()
        gallery = torch.stack((angle.cos(), angle.sin()), 1)
        found = nearest(torch.tensor([[1.0, 0], [0, 1]]), gallery, 3)
        assert found.places_Qk.tolist() == [[0, 2, 3], [3, 2, 0]]
        torch.testing.assert_close(found.distances_Qk, torch.tensor([[0, 1, 2], [0, 2 - 3**0.5, 2]]))

    @pytest.mark.parametrize("k", [1, 2, 5, FEW, FEW + 1, 100, 300])
    def test_full_matrix(self, k):
        queries, gallery = drawn(40, 1), drawn(300)
        assert_nearest(nearest(queries, gallery, k), queries, gallery, k)

    @pytest.mark.parametrize("k", [1, 3, FEW, FEW + 1, 200])
    def test_equal_ones_in_the_order_of_their_places(self, k):
        queries, gallery = halves(30, 1), halves(200)
        distances, places = by_hand(queries, gallery, k)
        assert len(distances.unique()) < 10
        assert_is(nearest(queries, gallery, k), (distances, places))

    @settings(deadline=None, max_examples=60)
    @given(st.integers(1, 4), st.integers(1, 150), st.integers(0, 2**20), st.booleans(), st.data())
    def test_any_sizes(self, queries, pictures, seed, same, data):
        gallery = halves(pictures, seed, dim=6)
        x = gallery[:queries] if same else halves(queries, seed + 1, dim=6)
        left_out = torch.arange(len(x)) if same else None
        k = data.draw(st.integers(1, pictures))
        assert_is(nearest(x, gallery, k, left_out_Q=left_out), by_hand(x, gallery, k, left_out))

    @pytest.mark.parametrize("dim", [37, 256])
    @pytest.mark.parametrize("queries", [1, 2, 19])
    @pytest.mark.parametrize("pictures", [33, COLUMNS + 1, 2 * COLUMNS + 100])
    def test_equal_pictures_are_equally_near_wherever_they_are(self, dim, queries, pictures):
        gallery, picture = drawn(pictures, dim=dim), drawn(1, 2, dim)
        places = [0, 1, 31, 32, pictures // 2, pictures - 1] if pictures > 33 else [0, 1, 31, 32]
        gallery[places] = picture
        found = nearest(unit(picture + 0.01 * drawn(queries, 3, dim)), gallery, len(places))
        assert found.places_Qk.tolist() == [places] * queries
        assert torch.equal(found.distances_Qk, found.distances_Qk[:, :1].expand(-1, len(places)))

    def test_itself_is_at_no_distance_below_0(self):
        gallery = drawn(500, dim=100)
        found = nearest(gallery, gallery, 1)
        assert torch.equal(found.places_Qk[:, 0], torch.arange(500))
        assert (found.distances_Qk >= 0).all()
        torch.testing.assert_close(found.distances_Qk, torch.zeros(500, 1))


class TestLeftOut:
    @pytest.mark.parametrize("k", [1, 4, FEW + 1, 60])
    def test_of_one_set_none_finds_itself(self, k):
        gallery, itself = halves(60), torch.arange(60)
        found = nearest(gallery, gallery, k, left_out_Q=itself)
        assert not (found.places_Qk == itself[:, None]).any()
        assert_is(found, by_hand(gallery, gallery, k, itself))

    def test_a_twin_is_found(self):
        gallery = drawn(5)[[0, 1, 0, 2, 3]]
        found = nearest(gallery, gallery, 1, left_out_Q=torch.arange(5))
        assert found.places_Qk[[0, 2], 0].tolist() == [2, 0]
        assert found.distances_Qk[0, 0] < found.distances_Qk[1, 0]

    def test_where_nothing_is_left_the_place_is_minus_1(self):
        gallery = drawn(3)
        found = nearest(gallery, gallery, 3, left_out_Q=torch.tensor([0, -1, 2]))
        assert (found.places_Qk == -1).sum(1).tolist() == [1, 0, 1]
        assert found.places_Qk[[0, 2], 2].tolist() == [-1, -1]
        assert found.distances_Qk[[0, 2], 2].isinf().all()
        alone = nearest(gallery[:1], gallery[:1], 1, left_out_Q=torch.tensor([0]))
        assert alone.places_Qk.tolist() == [[-1]]
        assert alone.distances_Qk.isinf().all()


class TestBorders:
    @pytest.mark.parametrize(
        "pictures", [COLUMNS // 2 + more for more in (-1, 0, 1)] + [COLUMNS + more for more in (-1, 0, 1, 4096, 4129)]
    )
    @pytest.mark.parametrize("k", [1, FEWEST, FEWEST + 1, FEW])
    def test_chunks_of_the_gallery(self, pictures, k):
        gallery = halves(pictures)
        last = torch.tensor([pictures - 1, min(COLUMNS, pictures) - 2, 0, -1, min(COLUMNS, pictures - 1)])
        queries = gallery[last]
        assert_is(nearest(queries, gallery, k), by_hand(queries, gallery, k))
        assert_is(nearest(queries, gallery, k, left_out_Q=last), by_hand(queries, gallery, k, last))

    @pytest.mark.parametrize("pictures", [COLUMNS_OF_MANY, COLUMNS_OF_MANY + 1])
    @pytest.mark.parametrize("k", [FEW + 1, 128, 129, COLUMNS_OF_MANY])
    def test_chunks_for_many_neighbours(self, pictures, k):
        queries, gallery = halves(2, 1), halves(pictures)
        assert_is(nearest(queries, gallery, k), by_hand(queries, gallery, k))

    @pytest.mark.parametrize("queries", [1, 7, 8, 9, 16, 17])
    def test_chunks_of_queries(self, queries, monkeypatch):
        monkeypatch.setattr(neighbours, "_DISTANCES", 8 * COLUMNS // 2)
        monkeypatch.setattr(neighbours, "_FEWEST", 1)
        x, gallery = halves(queries, 1), halves(50)
        left_out = torch.arange(queries)
        parts = list(nearest_by_chunks(x, gallery, 3, left_out_Q=left_out))
        assert [part.stop - part.start for part, _ in parts] == [8] * (queries // 8) + [queries % 8] * (queries % 8 > 0)
        assert_is(nearest(x, gallery, 3, left_out_Q=left_out), by_hand(x, gallery, 3, left_out))

    def test_fewer_queries_at_a_time_where_each_has_many_neighbours(self, monkeypatch):
        monkeypatch.setattr(neighbours, "_FOUND", 200)
        x, gallery = halves(9, 1), halves(100)
        parts = list(nearest_by_chunks(x, gallery, 100))
        assert [(part.start, part.stop) for part, _ in parts] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
        assert_is(nearest(x, gallery, 100), by_hand(x, gallery, 100))


class TestSizes:
    @pytest.mark.parametrize(("k", "pictures"), [(0, 5), (-1, 5), (6, 5), (1, 0)])
    def test_k_of_no_gallery(self, k, pictures):
        with pytest.raises(ValueError, match=f"k is {k}, for a gallery of {pictures}"):
            nearest(drawn(2), drawn(5)[:pictures], k)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_no_queries(self, dtype):
        found = nearest(drawn(5)[:0].to(dtype), drawn(5), 2)
        assert found.distances_Qk.shape == found.places_Qk.shape == (0, 2)
        assert (found.distances_Qk.dtype, found.places_Qk.dtype) == (torch.float32, torch.int64)

    @pytest.mark.parametrize("k", [4, FEW + 8])
    def test_memory_is_bounded_whatever_is_searched(self, k, monkeypatch):
        monkeypatch.setattr(neighbours, "_DISTANCES", 8 * COLUMNS)
        monkeypatch.setattr(neighbours, "_FEWEST", 1)
        queries, gallery = drawn(300, 1, dim=4), drawn(3 * COLUMNS, dim=4)
        with Peak() as peak:
            nearest(queries, gallery, k)
        found, chunk, at_a_time = 300 * k * 12, gallery.nbytes, 8 * COLUMNS * 4
        assert at_a_time < peak.bytes < 3 * at_a_time + 2 * found + 2 * chunk
        assert peak.bytes < 300 * len(gallery) * 4 / 8


class TestUnit:
    def test_length_1_but_for_zeros(self):
        x = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]]))
        torch.testing.assert_close(x, torch.tensor([[0.6, 0.8], [0, 0], [1, 0]]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_float32_of_any(self, dtype):
        x = unit(torch.randn(9, 5).to(dtype))
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.norm(dim=1), torch.ones(9))


class TestSurroundings:
    """A run's own precision and gradients are neither used nor changed."""

    def test_half_precision_is_not_used(self):
        queries, gallery = drawn(20, 1), drawn(200)
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest(queries, gallery, 5)
        assert torch.equal(found.distances_Qk, nearest(queries, gallery, 5).distances_Qk)

    def test_products_are_of_full_precision(self, monkeypatch):
        """On a GPU, TF32 would change who is near; a CPU's numbers do not show it."""
        told, exact = [], neighbours.linear_into
        monkeypatch.setattr(
            neighbours, "linear_into", lambda *args: told.append(torch.get_float32_matmul_precision()) or exact(*args)
        )
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            nearest(drawn(2), drawn(9), 2)
        finally:
            torch.set_float32_matmul_precision(before)
        assert told == ["highest"]

    def test_numbers_of_half_precision_are_searched_as_they_are(self):
        queries, gallery = drawn(20, 1).bfloat16(), drawn(200).bfloat16()
        whole = nearest(queries.float(), gallery.float(), 5)
        assert all(torch.equal(*both) for both in zip(nearest(queries, gallery, 5), whole, strict=True))

    def test_no_gradients(self):
        found = nearest(drawn(2).requires_grad_(), drawn(9).requires_grad_(), 2)
        assert not found.distances_Qk.requires_grad

    @pytest.mark.parametrize("abandoned", [False, True])
    def test_between_two_chunks_all_is_as_before(self, abandoned, monkeypatch):
        monkeypatch.setattr(neighbours, "_DISTANCES", COLUMNS)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", torch.bfloat16):
                chunks = nearest_by_chunks(drawn(3, 1), drawn(9), 2)
                for _ in chunks:
                    told = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
                    assert (*told, torch.get_float32_matmul_precision()) == (True, True, "medium")
                    if abandoned:
                        break
            assert not torch.is_autocast_enabled("cpu")
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)


class TestFaiss:
    @pytest.mark.parametrize("k", [1, 5, 40, 200])
    @pytest.mark.parametrize("with_itself", [True, False])
    def test_finds_the_same(self, k, with_itself):
        gallery = drawn(200)
        queries, left_out = (gallery, None) if with_itself else (gallery, torch.arange(200))
        found = nearest(queries, gallery, k, left_out_Q=left_out, engine="faiss")
        assert_nearest(found, queries, gallery, k, left_out)
        ours = nearest(queries, gallery, k, left_out_Q=left_out)
        torch.testing.assert_close(found.distances_Qk, ours.distances_Qk)
        sure = (ours.distances_Qk.diff(dim=1) > 1e-5).all(1)  # no two so near that rounding decides
        assert sure.any()
        assert torch.equal(found.places_Qk[sure], ours.places_Qk[sure])

    def test_some_leave_a_place_out(self):
        gallery, left_out = drawn(6), torch.tensor([0, -1, 2, -1, 4, 5])
        found = nearest(gallery, gallery, 6, left_out_Q=left_out, engine="faiss")
        assert_nearest(found, gallery, gallery, 6, left_out)
        assert (found.places_Qk[:, -1] == -1).tolist() == [True, False, True, False, True, True]

    def test_in_chunks(self, monkeypatch):
        monkeypatch.setattr(neighbours, "_DISTANCES", 4 * COLUMNS)
        queries, gallery = drawn(9, 1), drawn(50)
        assert_nearest(nearest(queries, gallery, 3, engine="faiss"), queries, gallery, 3)

    def test_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'fiducial\[faiss\]'"):
            nearest(drawn(2), drawn(9), 1, engine="faiss")
