import pytest
import torch

from mal.losses import dice_loss, mil_loss, ramp_up


class TestDice:
    def test_equal_binary_masks(self):  # 1 - 2n / (2n + 0.002)
        mask = torch.zeros(1, 4, 4)
        mask[0, :2, :3] = 1
        assert dice_loss(mask, mask) == pytest.approx(1 - 12 / 12.002, abs=1e-7)

    def test_disjoint_masks(self):
        one, other = torch.eye(4)[None], 1 - torch.eye(4)[None]
        assert dice_loss(one, other) == pytest.approx(1.0)

    def test_empty_masks_are_far_apart(self):
        assert dice_loss(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [1, 1]

    def test_gradient(self):
        pred = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
        target = torch.rand(2, 3, 3, dtype=torch.float64)
        value = dice_loss(pred, target).sum()
        value.backward()
        step = 1e-3
        moved = pred.detach().clone()
        moved[0, 1, 1] += step
        slope = (dice_loss(moved, target).sum() - value.detach()) / step
        assert pred.grad[0, 1, 1] == pytest.approx(float(slope), rel=2e-2, abs=2e-3)


class TestMil:
    def test_of_the_box_itself(self):  # 2 rows and 3 columns: two dice terms
        box = torch.zeros(1, 5, 5)
        box[0, 1:3, 1:4] = 1
        expected = (1 - 4 / 4.002) + (1 - 6 / 6.002)
        assert mil_loss(box, box) == pytest.approx(expected, abs=1e-6)

    def test_a_cross_through_the_box_is_enough(self):
        box = torch.zeros(1, 5, 5)
        box[0, 1:4, 1:4] = 1
        cross = torch.zeros(1, 5, 5)
        cross[0, 1:4, 2] = cross[0, 2, 1:4] = 1
        assert mil_loss(cross, box) == pytest.approx(float(mil_loss(box, box)))

    def test_what_sticks_out_costs(self):
        box = torch.zeros(1, 5, 5)
        box[0, 1:4, 1:4] = 1
        larger = box.clone()
        larger[0, 2, 4] = 1
        assert mil_loss(larger, box) > mil_loss(box, box) + 0.1


@pytest.mark.parametrize(
    ("epoch", "step", "expected"), [(0, 0, 0.0), (0, 500, 0.5), (0, 1000, 1.0), (0, 2000, 1.0), (1, 0, 1.0)]
)
def test_ramp_up(epoch, step, expected):
    assert ramp_up(epoch, step, 1000) == expected
