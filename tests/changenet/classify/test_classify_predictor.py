"""Goldens that rows share are encoded once, and nothing else changes."""

import pytest
import torch

from changenet.classify.model import build_classifier
from changenet.classify.predictor import PairPredictor

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["learnable", "euclidean"])
def network(request):
    torch.manual_seed(0)
    return build_classifier(
        backbone="fan_tiny_8_p4_hybrid",
        difference_module=request.param,
        image_size=(32, 32),
        embed_dim=8,
        embed_dec=4,
    ).eval()


def batch(ids: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows with equal ids >= 0 have equal goldens."""
    test = torch.randn(len(ids), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    goldens = [
        torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(100 + i if i >= 0 else 1000 + place))
        for place, i in enumerate(ids)
    ]
    return {"test": test, "golden": torch.stack(goldens), "golden_id": torch.tensor(ids)}


def output(predictor, rows):
    (result,) = predictor.predict(rows).values()
    return result


def plain(network, rows):
    with torch.inference_mode():
        return network(rows["test"], rows["golden"])


def test_same_outputs_as_the_network(network):
    predictor = PairPredictor(network, cache_mb=64)
    for seed, ids in enumerate([[0, 1, 0, 2], [2, 2, -1, 3], [-1, 1], [0]]):
        rows = batch(ids, seed)
        torch.testing.assert_close(output(predictor, rows), plain(network, rows), atol=2e-5, rtol=1e-4)


def test_counts(network):
    predictor = PairPredictor(network, cache_mb=64)
    predictor.predict(batch([0, 1, 0, -1]))
    assert (predictor.misses, predictor.hits) == (2, 1)
    predictor.predict(batch([1, 0, 2, 2]))
    assert (predictor.misses, predictor.hits) == (3, 4)


def test_without_shared_goldens_there_is_one_pass(network, monkeypatch):
    predictor = PairPredictor(network, cache_mb=64)
    monkeypatch.setattr(network, "encode", None)  # not called
    rows = batch([-1, -1, -1])
    assert torch.equal(output(predictor, rows), plain(network, rows))
    assert predictor.cache.num_bytes == predictor.hits == predictor.misses == 0


def test_switched_off(network):
    predictor = PairPredictor(network, cache_mb=0)
    rows = batch([0, 0, 1])
    assert torch.equal(output(predictor, rows), plain(network, rows))
    assert predictor.cache.num_bytes == 0


def test_output_does_not_depend_on_what_was_kept(network):
    """To the last bit: two processes that share the rows write the same file as one."""
    fresh, used = PairPredictor(network, cache_mb=64), PairPredictor(network, cache_mb=64)
    used.predict(batch([3, 1, 4], seed=9))
    rows = batch([0, 1, 2, 3, 4, 0])
    assert torch.equal(output(fresh, rows), output(used, rows))


def test_memory_is_bounded_and_the_oldest_goes(network):
    predictor = PairPredictor(network, cache_mb=64)
    predictor.predict(batch([0]))
    one = predictor.cache.num_bytes
    assert one > 0
    predictor.cache.max_bytes = 2 * one
    predictor.predict(batch([1]))
    predictor.predict(batch([0]))  # now 1 is the oldest
    predictor.predict(batch([2]))
    assert predictor.cache.num_bytes == 2 * one
    before = predictor.misses
    predictor.predict(batch([0, 2]))
    assert predictor.misses == before
    predictor.predict(batch([1]))
    assert predictor.misses == before + 1


def test_a_batch_larger_than_the_memory(network):
    predictor = PairPredictor(network, cache_mb=64)
    predictor.cache.max_bytes = 1
    rows = batch([0, 1, 0, 2])
    torch.testing.assert_close(output(predictor, rows), plain(network, rows), atol=2e-5, rtol=1e-4)
    assert predictor.cache.num_bytes == 0


def test_kept_encodings_do_not_hold_the_batch(network):
    predictor = PairPredictor(network, cache_mb=64)
    predictor.predict(batch([0, 1, 2, 3]))
    held = sum(part.untyped_storage().nbytes() for key in range(4) for part in predictor.cache.get(key))
    assert held == predictor.cache.num_bytes
