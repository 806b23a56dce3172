"""The triplet objective: by hand, by its formula, at its edges."""

import math

import pytest
import torch

from mlrecog.losses import TripletObjective


def by_formula(embeddings, labels, *, margin, epsilon, smooth):
    """The loss, the number of triplets and the share of active ones, one triplet at a time in float64."""
    z = torch.nn.functional.normalize(embeddings.double(), dim=1)
    similar, losses = z @ z.T, []
    for i, label in enumerate(labels.tolist()):
        positives = [j for j in range(len(z)) if j != i and labels[j] == label]
        negatives = [j for j in range(len(z)) if labels[j] != label]
        if not positives or not negatives:
            continue
        hardest, farthest = max(similar[i, n] for n in negatives), min(similar[i, p] for p in positives)
        for p in (p for p in positives if similar[i, p] - epsilon < hardest):
            for n in (n for n in negatives if similar[i, n] + epsilon > farthest):
                losses.append(((z[i] - z[p]).norm() - (z[i] - z[n]).norm() + margin).item())
    active = [v for v in losses if v > 0]
    costs = [math.log1p(math.exp(v)) for v in losses] if smooth else active
    return sum(costs) / len(costs) if costs else 0.0, len(losses), len(active) / len(losses) if losses else 0.0


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_by_its_formula(seed, smooth):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(14, 5, generator=generator)
    labels = torch.randint(0, 5, (14,), generator=generator)
    options = {"margin": 0.2 + 0.1 * seed, "epsilon": 0.05 * seed + 0.01, "smooth": smooth}
    mined = TripletObjective(**options)(embeddings, labels)
    loss, count, share = by_formula(embeddings, labels, **options)
    assert mined.loss.item() == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert mined.num_triplets == count
    assert mined.active_share.item() == pytest.approx(share)


def on_circle(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack((angle.cos(), angle.sin()), 1)


class TestByHand:
    """Two of one class at 0° and 60°, one of another at 90°: chords of 1, 2 sin(45°) and 2 sin(15°)."""

    EMBEDDINGS, LABELS = on_circle(0, 60, 90), torch.tensor([0, 0, 1])
    CHORDS = 1 - 2 * math.sin(math.pi / 12)

    def test_triplets(self):
        # for 0° the other is nearer (cos 60° = 0.5, cos 90° = 0) by more than 0.1; for 60° the negative is
        mined = TripletObjective(0.3, 0.1, smooth=False)(self.EMBEDDINGS, self.LABELS)
        assert [places.tolist() for places in mined.positive_pairs] == [[1], [0]]
        assert [places.tolist() for places in mined.negative_pairs] == [[1], [2]]
        assert mined.num_triplets == 1
        assert mined.loss.item() == pytest.approx(self.CHORDS + 0.3)
        assert mined.active_share.item() == 1

    def test_a_wide_epsilon_takes_all(self):
        mined = TripletObjective(0.3, 0.6, smooth=True)(self.EMBEDDINGS, self.LABELS)
        easy, hard = 1 - math.sqrt(2) + 0.3, self.CHORDS + 0.3
        assert mined.num_triplets == 2
        assert mined.loss.item() == pytest.approx((math.log1p(math.exp(easy)) + math.log1p(math.exp(hard))) / 2)
        assert mined.active_share.item() == 0.5


class TestProperties:
    def test_lengths_do_not_count(self):
        generator = torch.Generator().manual_seed(0)
        embeddings, labels = torch.randn(8, 4, generator=generator), torch.arange(8) % 3
        scaled = embeddings * torch.rand(8, 1, generator=generator).add(0.1)
        a, b = (TripletObjective()(e, labels).loss for e in (embeddings, scaled))
        torch.testing.assert_close(a, b)

    def test_order_of_the_batch_does_not_count(self):
        embeddings, labels = torch.randn(9, 4), torch.arange(9) % 3
        order = torch.randperm(9)
        a, b = TripletObjective()(embeddings, labels), TripletObjective()(embeddings[order], labels[order])
        torch.testing.assert_close(a.loss, b.loss)
        assert a.num_triplets == b.num_triplets

    def test_the_gradient_is_that_of_the_loss(self):
        embeddings, labels = on_circle(0, 60, 90, 150).requires_grad_(), torch.tensor([0, 0, 1, 1])
        objective = TripletObjective(epsilon=2.0)  # all triplets, so that a small step changes none
        objective(embeddings, labels).loss.backward()
        step = torch.zeros_like(embeddings)
        step[1, 0] = 1e-2
        above, below = (objective(embeddings.detach() + side * step, labels).loss for side in (1, -1))
        assert embeddings.grad[1, 0].item() == pytest.approx(((above - below) / 2e-2).item(), rel=1e-2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_float32_whatever_comes(self, dtype):
        embeddings, labels = torch.randn(8, 16).to(dtype), torch.arange(8) % 2
        want = TripletObjective()(embeddings.float(), labels)
        with torch.autocast("cpu", torch.bfloat16):
            got = TripletObjective()(embeddings, labels)
        assert got.loss.dtype == torch.float32
        assert torch.equal(got.loss, want.loss)


class TestNothingToMine:
    @pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["one class", "one picture of each"])
    def test_loss_and_gradient_are_zero(self, labels):
        embeddings = torch.randn(4, 3, requires_grad=True)
        mined = TripletObjective()(embeddings, torch.tensor(labels))
        mined.loss.backward()
        assert (mined.loss.item(), mined.num_triplets, mined.active_share.item()) == (0, 0, 0)
        assert not embeddings.grad.any()

    def test_what_is_far_apart_teaches_nothing(self):
        embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
        mined = TripletObjective()(embeddings, torch.tensor([0, 0, 1, 1]))
        assert mined.num_triplets == 0

    def test_all_in_one_point_stays_finite(self):
        embeddings = torch.ones(4, 3, requires_grad=True)
        mined = TripletObjective(0.3, smooth=False)(embeddings, torch.tensor([0, 0, 1, 1]))
        mined.loss.backward()
        assert mined.loss.item() == pytest.approx(0.3)
        assert mined.active_share.item() == 1
        assert embeddings.grad.isfinite().all()

    def test_what_is_not_finite_is_not_hidden(self):
        embeddings = torch.randn(4, 3)
        embeddings[1] = math.nan
        assert not TripletObjective()(embeddings, torch.tensor([0, 0, 1, 1])).loss.isfinite()
