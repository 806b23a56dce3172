"""Message passing: the compiled kernel against torch, and torch against numbers worked out by hand."""

import logging
import math

import pytest
import torch

from fiducial.ops import message_passing as op
from fiducial.ops.kernel import UnavailableError


def inputs(height, width, radius=1, batch=2, seed=0):
    """Affinities, a box that leaves a border and is soft at its edge, probabilities."""
    generator = torch.Generator().manual_seed(seed)
    affinity = torch.rand((2 * radius + 1) ** 2 - 1, batch, height, width, generator=generator)
    box = torch.zeros(batch, height, width)
    box[:, height // 4 : height - height // 5, width // 5 : width - width // 4] = 1
    box[:, height // 4] *= 0.5
    return affinity, box, torch.rand(batch, height, width, generator=generator)


def by_torch(affinity, box, prob, **options):
    return op.by_torch(affinity, box, (prob * box).clamp(options["low"], options["high"]), **options)


OPTIONS = {"radius": 1, "num_iter": 5, "low": 0.1, "high": 0.9}


def passed(*arguments, **options):
    return op.message_passing(*arguments, **{**OPTIONS, **options})


@pytest.fixture
def without_kernel(monkeypatch):
    monkeypatch.setattr(op, "_is_compiled", lambda: False)


@pytest.mark.usefixtures("without_kernel")
class TestDefinition:
    def test_two_pixels_by_hand(self):
        # a pixel of 0.8 beside one of 0.4, each other's only neighbour with affinity 0.5
        affinity = torch.zeros(8, 1, 1, 2)
        affinity[4, 0, 0, 0] = affinity[3, 0, 0, 1] = 0.5  # the one to the right, and to the left
        found = passed(affinity, torch.ones(1, 1, 2), torch.tensor([[[0.8, 0.4]]]), num_iter=1)
        first = 0.8 * 0.4**0.5, 0.2 * 0.6**0.5
        second = 0.4 * 0.8**0.5, 0.6 * 0.2**0.5
        expected = [first[0] / (sum(first) + 1e-6), second[0] / (sum(second) + 1e-6)]
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)

    def test_alone_a_pixel_stays_as_it_is(self):
        affinity, box, prob = torch.zeros(8, 1, 3, 3), torch.ones(1, 3, 3), torch.linspace(0.2, 0.8, 9).view(1, 3, 3)
        torch.testing.assert_close(passed(affinity, box, prob), prob, atol=1e-5, rtol=0)

    def test_no_iteration_gives_what_came_within_the_bounds(self):
        affinity, box, prob = inputs(8, 9)
        assert torch.equal(passed(affinity, box, prob, num_iter=0), (prob * box).clamp(0.1, 0.9))

    @pytest.mark.parametrize("wrong", [(7, 2, 8, 9), (8, 1, 8, 9), (8, 2, 9, 8)])
    def test_shapes_that_do_not_go_together(self, wrong):
        _, box, prob = inputs(8, 9)
        with pytest.raises(ValueError, match="affinities of"):
            passed(torch.zeros(wrong), box, prob)


@pytest.mark.compiler
class TestKernel:
    @pytest.mark.parametrize("radius", [1, 2, 3])
    @pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 16), (12, 17), (30, 31), (40, 90)])
    def test_equals_torch(self, size, radius):
        given = inputs(*size, radius=radius)
        options = {**OPTIONS, "radius": radius, "num_iter": 3}
        torch.testing.assert_close(passed(*given, **options), by_torch(*given, **options), atol=1e-5, rtol=1e-5)

    def test_hard_masks_are_equal_after_many_iterations(self):
        given = inputs(64, 64, seed=1)
        options = {**OPTIONS, "num_iter": 100}
        assert torch.equal(passed(*given, **options) > 0.5, by_torch(*given, **options) > 0.5)

    def test_a_box_without_pixels(self):
        affinity, _, prob = inputs(8, 20)
        assert torch.equal(passed(affinity, torch.zeros_like(prob), prob), torch.full_like(prob, 0.1))

    def test_products_too_small_for_a_float_are_nothing(self):
        given = inputs(12, 40, radius=3)
        options = {"radius": 3, "num_iter": 2, "low": 1e-4, "high": 1 - 1e-4}
        found = passed(given[0] * 0 + 1, *given[1:], **options)  # 49 factors of 0.0001
        torch.testing.assert_close(found, by_torch(given[0] * 0 + 1, *given[1:], **options), atol=1e-5, rtol=1e-5)

    def test_what_is_no_number_stays_none_and_spreads_to_its_neighbours_alone(self):
        affinity, _, prob = inputs(9, 40, batch=1)
        prob[0, 4, 20] = math.nan
        found = passed(affinity, torch.ones_like(prob), prob, num_iter=1)
        assert found.isnan().nonzero().tolist() == [[0, y, x] for y in (3, 4, 5) for x in (19, 20, 21)]

    def test_threads_do_not_change_a_bit(self):
        given = inputs(60, 70)
        one, before = passed(*given), torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(passed(*given), one)
        finally:
            torch.set_num_threads(before)

    def test_what_comes_in_is_left_as_it_is(self):
        given = inputs(10, 11)
        copies = [tensor.clone() for tensor in given]
        passed(*given)
        assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


class TestChoice:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch):
        monkeypatch.delenv("FIDUCIAL_MSDA_KERNEL", raising=False)
        op._is_compiled.cache_clear()
        yield
        op._is_compiled.cache_clear()

    def test_torch_serves_where_nothing_can_be_compiled_and_says_so_once(self, monkeypatch, caplog):
        def unavailable(device):
            raise UnavailableError("no C++ compiler (g++): install g++")

        monkeypatch.setattr(op.compiled, "load_library", unavailable)
        given = inputs(8, 9)
        with caplog.at_level(logging.INFO, logger="fiducial"):
            assert torch.equal(passed(*given), by_torch(*given, **OPTIONS))
            passed(*given)
        assert caplog.messages == [
            "message passing on cpu: torch, slower than the compiled kernel (no C++ compiler (g++): install g++)"
        ]

    def test_the_environment_keeps_torch(self, monkeypatch):
        monkeypatch.setenv("FIDUCIAL_MSDA_KERNEL", "torch")
        monkeypatch.setattr(op.compiled, "load_library", lambda device: pytest.fail("not to be loaded"))
        passed(*inputs(4, 4))

    def test_float64_is_left_to_torch(self):
        given = [tensor.double() for tensor in inputs(8, 9)]
        assert torch.equal(passed(*given), by_torch(*given, **OPTIONS))
