"""The simpler operators compute what the ones that they stand for do."""

import pytest
import torch
import torch.nn.functional as F

from fiducial.deploy.spelled_out import SpelledOut


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("dims", [(5, 4), (2, 5, 4), (2, 3, 5, 4), (2, 7, 7, 5, 4)])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_attention(dims, scale):
    query, key, value = draw(*dims), draw(*dims) + 1, draw(*dims) * 2
    expected = F.scaled_dot_product_attention(query, key, value, scale=scale)
    with SpelledOut():
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, scale=scale), expected)


@pytest.mark.parametrize("options", [{"attn_mask": torch.eye(5, dtype=torch.bool)}, {"is_causal": True}])
def test_masked_attention_stays(options):
    query, key, value = draw(2, 5, 4), draw(2, 5, 4) + 1, draw(2, 5, 4) * 2
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with SpelledOut():
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, **options), expected)


@pytest.mark.parametrize(("dim", "sizes"), [(0, (2, 3)), (1, (4, -1)), (-1, (5, 1)), (-2, (2, 2, 2))])
def test_unflatten(dim, sizes):
    x = draw(6, 8, 5)
    expected = torch.unflatten(x, dim, sizes)
    with SpelledOut():
        assert torch.equal(torch.unflatten(x, dim, sizes), expected)
        assert torch.equal(x.unflatten(dim, sizes), expected)


@pytest.mark.parametrize("times", [(2, 3), (1, 2, 2), (4, 1, 1, 2)])
def test_tile(times):
    x = draw(2, 3)
    expected = torch.tile(x, times)
    with SpelledOut():
        assert torch.equal(torch.tile(x, times), expected)
        assert torch.equal(x.tile(*times), expected)


def test_others_are_themselves():
    x = draw(3, 4)
    with SpelledOut():
        assert torch.equal(F.relu(x), x.clamp(min=0))
