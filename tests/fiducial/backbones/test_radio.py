import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from fiducial.backbones import radio
from fiducial.backbones.names import BACKBONES, build_embedding, build_pyramid
from fiducial.backbones.radio import RadioEmbedding, RadioPyramid, RadioShape, RadioViT

TINY = RadioShape(dim=32, depth=4, heads=4, class_tokens=4, registers=4, summary_tokens=3)
TINY_P1 = RadioShape(32, 4, 4, class_tokens=3, registers=13, summary_tokens=3, mlp_norm=True)
TINY_V3 = RadioShape(32, 4, 4, class_tokens=4, registers=4, summary_tokens=3, layer_scale=1e-5)
VIT_PARAMETERS = {  # name -> parameters and keys of the ViT
    "c_radio_p1_vit_huge_patch16_224_mlpnorm": (651_980_800, 451),
    "c_radio_p2_vit_huge_patch16_224_mlpnorm": (651_980_800, 451),
    "c_radio_p3_vit_huge_patch16_224_mlpnorm": (651_980_800, 451),
    "c_radio_v2_vit_base_patch16_224": (98_233_344, 147),
    "c_radio_v2_vit_large_patch16_224": (319_881_216, 291),
    "c_radio_v2_vit_huge_patch16_224": (651_642_880, 387),
    "c_radio_v3_vit_base_patch16_reg4_dinov2": (98_251_776, 171),
    "c_radio_v3_vit_large_patch16_reg4_dinov2": (319_930_368, 339),
    "c_radio_v3_vit_huge_patch16_reg4_dinov2": (651_642_880, 387),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(shape=TINY, grid=24, **options):
    return RadioViT(shape, grid=grid, **options)


def as_timm(vit, height, width):
    """The same network as timm's class for one input size."""
    shape = vit.shape
    model = VisionTransformer(
        img_size=(height, width),
        patch_size=16,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=shape.heads,
        reg_tokens=shape.prefix_tokens - 1,
        no_embed_class=True,
        final_norm=False,
        num_classes=0,
        global_pool="",
        init_values=shape.layer_scale,
        scale_mlp_norm=shape.mlp_norm,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    if shape.mlp_norm:
        for block in model.blocks:
            block.mlp.norm.eps = 1e-5
    generator, state = vit.patch_generator, {f"blocks.{k}": v for k, v in vit.blocks.state_dict().items()}
    token = generator.cls_token.token.detach()
    state |= {"cls_token": token[None, :1], "reg_token": token[None, 1:]}
    state["pos_embed"] = radio.cut_table(generator.pos_embed.detach(), (height // 16, width // 16))
    state["patch_embed.proj.weight"] = generator.embedder.weight.detach().reshape(-1, 3, 16, 16)
    state["patch_embed.proj.bias"] = torch.zeros(shape.dim)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", VIT_PARAMETERS)
def test_sizes_of_the_published_networks(name):
    with torch.device("meta"):
        model = build_embedding(name, image_size=(224, 224))
    keys = list(model.state_dict())
    assert (sum(p.numel() for p in model.parameters()), len(keys)) == VIT_PARAMETERS[name]
    assert all(key.startswith("radio.radio.model.") for key in keys)
    assert BACKBONES[name].embedding_dim == radio.VARIANTS[name].summary_tokens * radio.VARIANTS[name].dim
    assert model.vit.patch_generator.pos_embed.shape == (1, 128 * 128, BACKBONES[name].channels[0])


def test_keys_as_stored():
    name = "c_radio_v3_vit_base_patch16_reg4_dinov2"
    case = json.loads((Path(__file__).parents[2] / "stored" / f"keys_{name}.json").read_text())
    with torch.device("meta"):
        state = build_embedding(name, image_size=(224, 224)).state_dict()
    assert [[key, list(value.shape), "float32"] for key, value in state.items()] == case["state_dict"]


def test_every_name_has_a_network():
    assert set(radio.VARIANTS) == {name for name, info in BACKBONES.items() if info.family == "C-RADIO"}


@pytest.mark.parametrize("shape", [TINY, TINY_P1, TINY_V3])
@pytest.mark.parametrize("size", [(224, 224), (256, 384)])
@torch.no_grad()
def test_equals_timm(shape, size):
    vit = tiny(shape).eval()
    image = torch.randn(2, 3, *size)
    torch.testing.assert_close(vit(image), as_timm(vit, *size)(image), atol=1e-5, rtol=1e-5)


class TestEmbedding:
    @torch.no_grad()
    def test_summary_is_the_first_class_tokens(self):
        model = RadioEmbedding(tiny()).eval()
        image = torch.randn(2, 3, 32, 48)
        tokens = model.vit(image)
        summary, features = model.summary_and_features(image)
        assert torch.equal(model(image), summary)
        assert torch.equal(summary.reshape(2, 3, 32), tokens[:, :3])
        assert torch.equal(features, tokens[:, 8:])

    def test_size_must_fit(self):
        with pytest.raises(ValueError, match="40×32"):
            RadioEmbedding(tiny())(torch.zeros(1, 3, 40, 32))

    def test_frozen_is_deterministic_in_training(self):
        model = RadioEmbedding(tiny())
        model.freeze()
        model.train()
        image = torch.randn(2, 3, 64, 64)
        assert torch.equal(model(image), model(image))
        assert not model(image).requires_grad

    def test_training_is_random_by_torch_s_generator(self):
        model, image = RadioEmbedding(tiny()).train(), torch.randn(2, 3, 64, 64)
        torch.manual_seed(3)
        first, second = model(image), model(image)
        torch.manual_seed(3)
        assert not torch.allclose(first, second)
        assert torch.equal(first, model(image))

    @torch.no_grad()
    def test_positions_follow_the_weights(self):
        model, image = RadioEmbedding(tiny()).eval(), torch.randn(1, 3, 32, 32)
        before = model(image)
        model.vit.patch_generator.pos_embed.mul_(3)
        assert not torch.allclose(before, model(image))
        model.load_state_dict({k: v * 0 if "pos_embed" in k else v for k, v in model.state_dict().items()})
        after = model(image)
        model.vit.patch_generator._tables.clear()
        assert torch.equal(after, model(image))


class TestTable:
    def test_native_grid_is_the_stored_table(self):
        table = torch.randn(1, 64, 5)
        assert torch.equal(radio.cut_table(table, (8, 8)), table)

    def test_top_left_of_the_resized_square(self):
        table = torch.arange(9.0).reshape(1, 9, 1)  # 3 x 3: 0..8
        assert radio.cut_table(table, (1, 5))[0, :, 0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2])
        assert radio.cut_table(table, (5, 1))[0, :, 0].tolist() == pytest.approx([0, 1.5, 3, 4.5, 6])

    def test_crop_of_everything_is_the_resized_table(self):
        table, everything = torch.randn(1, 144, 3), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
        torch.testing.assert_close(radio.crop_table(table, everything, (5, 5)), radio.cut_table(table, (5, 5)))

    def test_crops_per_sample(self):  # the value of a cell is x + 10 y on the unit square; two different crops of it
        ys, xs = torch.meshgrid(torch.linspace(0, 1, 9), torch.linspace(0, 1, 9), indexing="ij")
        table = (xs + 10 * ys).reshape(1, 81, 1)
        crops = torch.tensor([[[0.5, 0.25], [0.5, 0.0]], [[0.25, 1.0], [0.0, 0.0]]])
        found = radio.crop_table(table, crops, (2, 3)).reshape(2, 2, 3)
        assert found[0].flatten().tolist() == pytest.approx([0.5, 0.75, 1.0, 3.0, 3.25, 3.5], abs=1e-5)
        assert found[1].flatten().tolist() == pytest.approx([0.0, 0.125, 0.25, 10.0, 10.125, 10.25], abs=1e-5)

    def test_crop_equals_grid_sample(self):
        table, crops = torch.randn(1, 144, 3, dtype=torch.float64), radio.random_crops(5, torch.device("cpu"))
        rows, cols = torch.linspace(0, 1, 4), torch.linspace(0, 1, 7)
        unit = torch.stack(torch.meshgrid(cols, rows, indexing="xy"), dim=-1)
        points = 2 * (unit * crops[:, None, None, 0] + crops[:, None, None, 1]) - 1
        image = table.reshape(1, 12, 12, 3).permute(0, 3, 1, 2).expand(5, -1, -1, -1)
        expected = F.grid_sample(image, points.double(), align_corners=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(radio.crop_table(table, crops, (4, 7)), expected, atol=1e-5, rtol=1e-5)

    def test_random_crops_lie_inside(self):
        size, offset = radio.random_crops(4000, torch.device("cpu")).unbind(1)
        assert (offset >= 0).all()
        assert (size + offset <= 1 + 1e-6).all()
        inside = (size < 1).all(dim=1)
        side, aspect = (size[:, 0] * size[:, 1]).sqrt()[inside], (size[:, 0] / size[:, 1]).sqrt()[inside]
        assert side.min() >= math.sqrt(0.1) - 1e-6
        assert side.min() < 0.33
        assert aspect.min() >= 0.75 - 1e-6
        assert aspect.max() <= 4 / 3 + 1e-6

    def test_a_tenth_of_the_samples_sees_no_positions(self):
        generator = radio.PatchGenerator(4, 2, grid=4).train()
        tokens = generator(torch.zeros(2000, 3, 32, 32))[:, 2:]
        share = (tokens == 0).flatten(1).all(dim=1).float().mean()
        assert share == pytest.approx(0.1, abs=0.03)

    def test_random_positions_have_gradients(self):
        generator = radio.PatchGenerator(4, 2, grid=4).train()
        generator(torch.zeros(8, 3, 32, 32)).square().sum().backward()
        assert generator.pos_embed.grad.abs().sum() > 0


class TestPyramid:
    def test_published_keys(self):
        with torch.device("meta"):
            model = build_pyramid("c_radio_v2_vit_base_patch16_224", image_size=(224, 224), use_summary_token=False)
            larger = build_pyramid("c_radio_v2_vit_base_patch16_224", image_size=(224, 224))
        keys = list(model.state_dict())
        assert sum(key.startswith("radio.radio.radio.model.") for key in keys) == 147
        assert set(larger.state_dict()) - set(keys) == {
            f"{layer}.{kind}"
            for layer in ("fc_summary", "conv1", "conv2", "conv3", "conv4")
            for kind in ("weight", "bias")
        }
        added = sum(p.numel() for p in larger.parameters()) - sum(p.numel() for p in model.parameters())
        assert added == pytest.approx(134.32e6 - 124.88e6, abs=1e4)

    @pytest.mark.parametrize("size", [(224, 224), (64, 96)])
    @pytest.mark.parametrize("summary", [True, False])
    @torch.no_grad()
    def test_maps(self, size, summary):
        model = RadioPyramid(tiny(), use_summary_token=summary, heads=4, planes=8).eval()
        maps = model(torch.randn(2, 3, *size))
        assert [tuple(m.shape) for m in maps] == [(2, 32, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]

    def test_frozen_vit_is_deterministic_and_the_adapter_trains(self):
        model = RadioPyramid(tiny(TINY_V3), heads=4, planes=8)
        model.freeze()
        model.train()
        assert not model.vit.training
        assert model.spm.training
        image = torch.randn(2, 3, 64, 64)
        assert torch.equal(model.tokens(image), model.tokens(image))
        sum(m.square().mean() for m in model(image)).backward()
        assert all(p.grad is None for p in model.vit.parameters())
        assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("radio."))
