"""Published vision transformers with layers of their own compute the same in a plain one."""

import pytest
import timm
import torch
from torch import nn

from fiducial.backbones.mae import build_vit
from fiducial.backbones.vit_files import as_plain_vit

IMAGE = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scaled():
    """timm's DeiT III of tiny width, whose layer scales and positions are far from where they begin."""
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        embed_dim=192, depth=12, num_heads=3, no_embed_class=True, init_values=1e-6
    ).eval()
    for key, value in model.named_parameters():
        if "gamma" in key or key == "pos_embed":
            nn.init.normal_(value)
    return model


@pytest.mark.parametrize("spelling", ["timm", "original"])
def test_layer_scales_and_positions_of_deit_iii(scaled, spelling):
    weights = scaled.state_dict()
    if spelling == "original":
        weights = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in weights.items()}
    plain = build_vit("vit-deit-iii-tiny-224/16").eval()
    plain.load_state_dict(as_plain_vit(weights), strict=True)
    with torch.no_grad():
        want = scaled.forward_features(IMAGE)[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        assert torch.allclose(plain(IMAGE), want, atol=1e-3)


def test_the_trained_encoder_of_moco():
    weights = build_vit("vit-mocov3-tiny/16").state_dict()
    others = {f"momentum_encoder.{key}": torch.zeros_like(value) for key, value in weights.items()}
    found = as_plain_vit({f"base_encoder.{key}": value for key, value in weights.items()} | others)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_plain_files_stay_as_they_are():
    weights = build_vit("vit-deit-tiny/16").state_dict()
    found = as_plain_vit(weights)
    assert all(found[key] is weights[key] for key in weights)
    assert found.keys() == weights.keys()


def test_what_is_given_is_not_changed(scaled):
    weights = {key: value.clone() for key, value in scaled.state_dict().items()}
    as_plain_vit(weights)
    assert all(torch.equal(weights[key], value) for key, value in scaled.state_dict().items())
