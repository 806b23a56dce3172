import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from fiducial.backbones.alone import is_frozen, sees_images_alone
from fiducial.backbones.names import build_embedding, build_pyramid
from fiducial.backbones.radio import PatchGenerator

FAN = "fan_tiny_8_p4_hybrid"


@pytest.mark.parametrize(
    ("part", "alone"),
    [
        (nn.BatchNorm2d(3), False),
        (nn.Dropout(0.1), False),
        (nn.Dropout(0.0), True),
        (DropPath(0.1), False),
        (DropPath(0.0), True),
        (nn.LayerNorm(3), True),
        (PatchGenerator(8, 1, grid=2), False),
    ],
)
def test_in_training(part, alone):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), part)
    assert sees_images_alone(network) is alone
    assert sees_images_alone(network.eval())


@pytest.mark.parametrize("build", [build_pyramid, build_embedding])
def test_a_frozen_fan_stays_alone_in_training(build):
    backbone = build(FAN, image_size=(32, 32))
    assert not sees_images_alone(backbone)
    assert not is_frozen(backbone)
    backbone.freeze()
    assert is_frozen(backbone.train())


def test_eval_alone_is_not_frozen():
    assert not is_frozen(build_embedding(FAN, image_size=(32, 32)).eval())


@torch.no_grad()
def test_what_it_promises():
    """Of any batch that an image is in, the same comes out for it."""
    backbone = build_embedding(FAN, image_size=(32, 32))
    backbone.freeze()
    backbone.train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(backbone(images)[[2, 2]], backbone(images[[2, 2, 0]])[:2])
