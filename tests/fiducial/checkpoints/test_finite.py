"""Which contents a training can be continued with."""

import pytest
import torch

from fiducial.checkpoints.finite import GRADIENTS, not_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3),
        torch.ones(3, dtype=torch.int64),
        torch.tensor(True),
        torch.zeros(0),
        torch.full((2,), 65504.0, dtype=torch.float16),
        torch.full((2,), 3e38),
        torch.ones(2, dtype=torch.complex64),
        torch.full((3, 3), -INF).triu(1),  # an additive mask
        "a text",
    ],
)
def test_sound(value):
    assert not_finite({"state_dict": {"a": value}, "epoch": NAN}) == ""


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_number(bad, dtype):
    weights = torch.ones(2, 3, dtype=dtype)
    weights[1, 2] = bad
    assert not_finite({"state_dict": {"fine": torch.ones(2), "w": weights, "later": weights}}) == "w"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_scalar_is_no_mask(bad):
    assert not_finite({"state_dict": {"scale": torch.tensor(bad)}}) == "scale"


def test_gradients_that_are_kept():
    content = {"state_dict": {"w": torch.ones(2)}, GRADIENTS: {"w": torch.tensor([1.0, NAN])}}
    assert not_finite(content) == "w"


def test_nothing_to_look_at():
    assert not_finite({}) == not_finite({"state_dict": None}) == ""
