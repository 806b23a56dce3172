"""The benchmark of steps runs, and what it calls straightforward computes the same as the project's networks."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

import plain
import steps

from fiducial.backbones.radio import crop_table, random_crops
from fiducial.ops.linear import Linear


@pytest.fixture(autouse=True)
def one_thread():
    """The benchmark sets the number of threads for its whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestPlainFunctions:
    def test_crops_sampled_from_copies_are_the_crops(self):
        torch.manual_seed(0)
        table, crops = torch.randn(1, 64, 6), random_crops(3, torch.device("cpu"))
        torch.testing.assert_close(plain.sampled_crops(table, crops, (3, 5)), crop_table(table, crops, (3, 5)))

    def test_they_are_put_back(self):
        before = F.scaled_dot_product_attention, Linear.forward
        with plain.plain_functions():
            assert F.scaled_dot_product_attention is plain.explicit_attention
            assert Linear.forward is torch.nn.Linear.forward
        assert before == (F.scaled_dot_product_attention, Linear.forward)


@pytest.mark.parametrize("name", steps.QUICK)
class TestBothWays:
    def test_infer_the_same(self, name):
        steps.assert_equal(steps.QUICK[name], "inference")

    def test_train_the_same(self, name):
        steps.assert_equal(steps.QUICK[name], "training")


def test_results_that_differ_are_no_baseline(monkeypatch):
    def other_way(case, way):
        return torch.ones(3) * (1 if way == "plain" else 1.01)

    make = steps.QUICK["mlrecog"]
    monkeypatch.setattr(type(make()), "infer", other_way)
    with pytest.raises(AssertionError, match="the two ways differ by"):
        steps.assert_equal(make, "inference")


def test_targets():
    assert steps.target("mal", "inference", "ours") == 1.3
    assert steps.target("mal", "inference", "compiled") == 1.6
    assert steps.target("segment-fan", "training", "ours") == 1.25
    assert steps.target("segment-vit", "training", "ours") == 1.15
    assert steps.judged(1.2, 1.25) == "1.20x  (target 1.25: MISSED)"


@pytest.mark.slow
def test_it_runs(capfd):
    assert steps.main(["--quick", "--threads", "1", "--only", "mlrecog", "--ways", "plain,ours"]) == 0
    said = capfd.readouterr().out
    assert re.findall(r"^(\S+), (\w+)$", said, re.MULTILINE) == [
        ("mlrecog", mode) for mode in ("inference", "training")
    ]
    assert len(re.findall(r"straightforward +\d+\.\d+ s +\d+ MB", said)) == 2
    assert len(re.findall(r"matrix work \d+%", said)) == 2
