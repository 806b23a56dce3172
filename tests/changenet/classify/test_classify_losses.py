"""The contrastive loss."""

import pytest
import torch

from changenet.classify.losses import contrastive_loss


class TestContrastiveLoss:
    def test_hand_computed(self):  # same at 1: 1; different at 0.5: 1.5 ** 2; different beyond the margin: 0
        distance, label = torch.tensor([1.0, 0.5, 3.0]), torch.tensor([0, 1, 1])
        assert contrastive_loss(distance, label, margin=2.0).item() == pytest.approx((1 + 2.25 + 0) / 3)

    def test_broadcast_hand_computed(self):  # one defect of two: half of mean(d^2) and half of mean(max(2 - d, 0)^2)
        distance, label = torch.tensor([1.0, 3.0]), torch.tensor([1, 0])
        loss = contrastive_loss(distance, label, margin=2.0, broadcast=True)
        assert loss.item() == pytest.approx(0.5 * (1 + 9) / 2 + 0.5 * (1 + 0) / 2)

    def test_broadcast_forgets_which_pair_is_the_defect(self):
        distance, label = torch.rand(6), torch.tensor([1, 0, 0, 1, 0, 0])
        losses = [contrastive_loss(distance, y, broadcast=True) for y in (label, label.flip(0), label.roll(1))]
        assert torch.allclose(losses[0], losses[1])
        assert torch.allclose(losses[0], losses[2])
        assert not torch.allclose(contrastive_loss(distance, label), contrastive_loss(distance, label.roll(1)))

    @pytest.mark.parametrize("label", [0, 1])
    def test_both_forms_agree_on_one_class(self, label):
        distance, labels = 3 * torch.rand(5), torch.full((5,), label)
        assert torch.allclose(contrastive_loss(distance, labels), contrastive_loss(distance, labels, broadcast=True))

    @pytest.mark.parametrize("broadcast", [False, True])
    def test_gradient(self, broadcast):
        distance = torch.tensor([0.3, 1.7, 2.6, 0.9], dtype=torch.float64, requires_grad=True)
        label = torch.tensor([1, 0, 1, 0])
        assert torch.autograd.gradcheck(lambda d: contrastive_loss(d, label, broadcast=broadcast), distance)

    def test_unusable_arguments(self):
        with pytest.raises(ValueError, match=r"\(B,\)"):
            contrastive_loss(torch.rand(3), torch.zeros(3, 1))
        with pytest.raises(ValueError, match="margin"):
            contrastive_loss(torch.rand(3), torch.zeros(3), margin=0)
