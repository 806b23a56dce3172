"""The mean field against a plain loop over every pixel, and its own promises."""

import math

import pytest
import torch

from mal.mean_field import MeanField


def by_hand(image, prob, box, field):
    """The definition, pixel by pixel, in float64."""
    batch, height, width = prob.shape
    radius = field.kernel_size // 2
    image = image.double()
    x = (prob.double() * box.double()).clamp(field.low, field.high)
    for _ in range(field.num_iter):
        new = torch.empty_like(x)
        for b in range(batch):
            for r in range(height):
                for c in range(width):
                    background = foreground = 0.0
                    for i in range(max(0, r - radius), min(height, r + radius + 1)):
                        for j in range(max(0, c - radius), min(width, c + radius + 1)):
                            apart = float((image[b, :, i, j] - image[b, :, r, c]).square().sum())
                            weight = math.exp(-apart / (2 * field.zeta**2))
                            background += weight * math.log(1 - x[b, i, j])
                            foreground += weight * math.log(x[b, i, j])
                    fg, bg = math.exp(foreground) * float(box[b, r, c]), math.exp(background)
                    new[b, r, c] = min(max(fg / (1e-6 + fg + bg), field.low), field.high)
        x = new
    return (x > 0.5).float()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_equals_the_definition(size):
    generator = torch.Generator().manual_seed(size)
    image = torch.rand(2, 3, 7, 6, generator=generator) * 0.3
    prob, box = torch.rand(2, 7, 6, generator=generator), (torch.rand(2, 7, 6, generator=generator) > 0.2).float()
    field = MeanField(size, num_iter=4, zeta=0.15)
    assert torch.equal(field(image, prob, box), by_hand(image, prob, box, field))


def test_nothing_becomes_mask_outside_the_box():
    box = torch.zeros(1, 16, 16)
    box[:, 4:12, 4:12] = 1
    image = 3 * box[:, None].expand(-1, 3, -1, -1)  # else the background eats its way in
    assert torch.equal(MeanField()(image, torch.ones(1, 16, 16), box), box)


def test_the_mask_ends_where_the_colour_does():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 3.0
    prob = torch.full((1, 16, 16), 0.45)
    prob[..., 8:] = 0.55
    prob[:, 5:8, 6:9] = 0.9  # spills over
    prob[:, 10, 12] = 0.2  # a hole
    mask = MeanField()(image, prob, torch.ones(1, 16, 16))
    assert mask[..., 8:].all()
    assert not mask[..., :6].any()


def test_no_iteration_thresholds_alone():
    prob = torch.tensor([[[0.4, 0.6]]])
    assert MeanField(num_iter=0)(torch.zeros(1, 3, 1, 2), prob, torch.ones(1, 1, 2)).tolist() == [[[0, 1]]]


def test_gradients_are_not_recorded():
    prob = torch.rand(1, 8, 8, requires_grad=True)
    assert not MeanField(num_iter=2)(torch.rand(1, 3, 8, 8), prob, torch.ones(1, 8, 8)).requires_grad


def test_an_even_neighbourhood_is_refused():
    with pytest.raises(ValueError, match="odd"):
        MeanField(4)
