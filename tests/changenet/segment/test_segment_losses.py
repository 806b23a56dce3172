import math

import pytest
import torch
import torch.nn.functional as F

from changenet.segment.counts import IGNORED
from changenet.segment.losses import LOSSES, cross_entropy, dice, focal, mmiou, multi_scale, pixel_loss


def logits_of(*probabilities):
    """Logits ``(1, K, 1, pixels)`` whose softmax is the given class probabilities per pixel."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, None]


def random_case(seed=0, size=6, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, size, size, generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (2, size, size), generator=generator)
    label[:, 0] = IGNORED
    return logits, label


class TestCrossEntropy:
    def test_hand_computed(self):
        loss = cross_entropy(logits_of((0.5, 0.5), (0.2, 0.8)), torch.tensor([[[0, 1]]]))
        assert loss == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)

    def test_ignored_pixels_do_not_count(self):
        loss = cross_entropy(logits_of((0.5, 0.5), (0.2, 0.8)), torch.tensor([[[IGNORED, 1]]]))
        assert loss == pytest.approx(-math.log(0.8))

    def test_nothing_counts(self):
        logits = logits_of((0.5, 0.5)).requires_grad_()
        for kind in LOSSES.values():
            loss = kind(logits, torch.tensor([[[IGNORED]]]))
            assert loss == 0
            assert torch.autograd.grad(loss, logits, allow_unused=True)[0].abs().max() == 0

    def test_equals_torch_also_with_weights(self):
        logits, label = random_case()
        weight = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
        assert cross_entropy(logits, label).item() == pytest.approx(
            F.cross_entropy(logits, label, ignore_index=255).item()
        )
        want = F.cross_entropy(logits, label, weight, ignore_index=255).item()
        assert cross_entropy(logits, label, weight_K=weight).item() == pytest.approx(want)

    def test_label_of_8_bits_and_half_logits(self):
        logits, label = random_case()
        assert cross_entropy(logits.half(), label.byte()) == pytest.approx(
            cross_entropy(logits, label).item(), rel=1e-2
        )


class TestFocal:
    def test_hand_computed(self):
        loss = focal(logits_of((0.4, 0.6), (0.9, 0.1)), torch.tensor([[[1, 0]]]), gamma=2.0)
        by_hand = (-(0.4**2) * math.log(0.6) - 0.1**2 * math.log(0.9)) / 2
        assert loss == pytest.approx(by_hand)

    def test_gamma_0_is_cross_entropy(self):
        logits, label = random_case()
        assert focal(logits, label, gamma=0.0).item() == pytest.approx(cross_entropy(logits, label).item())

    def test_sure_and_right_counts_less(self):
        sure, doubtful = (focal(logits_of(p), torch.tensor([[[1]]])) for p in ((0.05, 0.95), (0.4, 0.6)))
        ratio = cross_entropy(logits_of((0.05, 0.95)), torch.tensor([[[1]]])) / -math.log(0.6)
        assert sure / doubtful < ratio


class TestDice:
    def test_hand_computed(self):
        # class 0: 2 * 0.5 / (0.7 + 1); class 1: 2 * 0.8 / (1.3 + 1)
        loss = dice(logits_of((0.5, 0.5), (0.2, 0.8)), torch.tensor([[[0, 1]]]))
        assert loss == pytest.approx(1 - (1.0 / 1.7 + 1.6 / 2.3) / 2)

    def test_perfect_is_0_and_absent_classes_are_left_out(self):
        logits = torch.full((1, 3, 1, 2), -100.0)
        logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = 100.0
        assert dice(logits, torch.tensor([[[0, 1]]])) == pytest.approx(0, abs=1e-6)


class TestMmiou:
    def test_hand_computed(self):
        # class 0: 0.5 / (0.7 + 1 - 0.5); class 1: 0.8 / (1.3 + 1 - 0.8)
        iou = (0.5 / 1.2, 0.8 / 1.5)
        loss = mmiou(logits_of((0.5, 0.5), (0.2, 0.8)), torch.tensor([[[0, 1]]]))
        assert loss == pytest.approx(-min(iou) - sum(iou) / 2)

    def test_absent_classes_have_no_say(self):
        logits = logits_of((0.5, 0.3, 0.2), (0.1, 0.8, 0.1))
        label = torch.tensor([[[0, 1]]])
        iou = (0.5 / (0.6 + 1 - 0.5), 0.8 / (1.1 + 1 - 0.8))
        assert mmiou(logits, label) == pytest.approx(-min(iou) - sum(iou) / 2)
        assert mmiou(logits, label, absent_classes=True) == pytest.approx(-sum(iou) / 3, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    logits, label = random_case()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, label), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_better_logits_cost_less(name):
    logits, label = random_case()
    right = F.one_hot(label.clamp(max=2), 3).permute(0, 3, 1, 2)
    assert LOSSES[name](logits + 2 * right, label) < LOSSES[name](logits, label)


class TestPixelLoss:
    def test_class_weights_and_gamma(self):
        logits, label = random_case()
        weight = torch.tensor([1.0, 2.0, 3.0])
        want = focal(logits, label, gamma=1.0, weight_K=weight)
        assert pixel_loss("focal", class_weights=[1, 2, 3], gamma=1.0)(logits, label) == want
        assert pixel_loss("ce", class_weights=[1, 2, 3])(logits, label) == cross_entropy(logits, label, weight_K=weight)

    def test_tao_counts_absent_classes_in_mmiou(self):
        logits, label = logits_of((0.5, 0.3, 0.2)), torch.tensor([[[0]]])
        assert pixel_loss("mmiou", compat_tao=True)(logits, label) == mmiou(logits, label, absent_classes=True)

    def test_unknown_name(self):
        with pytest.raises(KeyError):
            pixel_loss("hinge")


class TestMultiScale:
    def test_weighted_sum_against_the_nearest_label(self):
        label = torch.randint(0, 2, (2, 8, 8))
        coarse, fine = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 8, 8)
        want = 0.5 * cross_entropy(coarse, label[:, ::2, ::2]) + 2.0 * cross_entropy(fine, label)
        assert multi_scale([coarse, fine], label, [0.5, 2.0], cross_entropy) == pytest.approx(want.item())

    def test_ignored_stays_ignored(self):
        label = torch.full((1, 8, 8), IGNORED)
        assert multi_scale([torch.randn(1, 2, 4, 4)], label, [1.0], cross_entropy) == 0

    def test_one_weight_per_prediction(self):
        with pytest.raises(ValueError, match="zip"):
            multi_scale([torch.randn(1, 2, 4, 4)], torch.zeros(1, 8, 8).long(), [1.0, 1.0], cross_entropy)
