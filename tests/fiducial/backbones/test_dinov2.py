import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from fiducial.backbones import dinov2
from fiducial.backbones.dinov2 import DinoV2Embedding, DinoV2Pyramid, DinoV2Shape
from fiducial.backbones.names import BACKBONES, build_embedding, build_pyramid

TINY = DinoV2Shape(dim=32, depth=4, heads=4, hidden=48)
NAME = "vit_large_nvdinov2"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def as_timm(model, grid):
    """timm's class with the same weights and a table of ``grid`` x ``grid``."""
    made = VisionTransformer(
        img_size=14 * grid,
        patch_size=14,
        embed_dim=32,
        depth=4,
        num_heads=4,
        init_values=1e-5,
        mlp_ratio=48 / 32,
        mlp_layer=SwiGLUPacked,
        act_layer=nn.SiLU,
        num_classes=0,
        global_pool="token",
    ).eval()
    table = dinov2.scaled_positions(model.pos_embed.detach(), (grid, grid))
    made.load_state_dict(model.state_dict() | {"pos_embed": table})
    return made


def tiny():
    model = DinoV2Embedding(TINY, grid=6).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "token", "embed")):
                parameter.normal_()
    return model


class TestEmbedding:
    def test_published_sizes(self):
        with torch.device("meta"):
            model = build_embedding(NAME, image_size=(224, 224))
        assert sum(p.numel() for p in model.parameters()) == 304_793_856
        assert len(model.state_dict()) == 342
        assert model.pos_embed.shape == (1, 1370, 1024)
        assert BACKBONES[NAME].embedding_width(224, 224) == 1024

    @pytest.mark.parametrize("grid", [6, 3, 8])
    @torch.no_grad()
    def test_equals_timm(self, grid):
        model, image = tiny(), torch.randn(2, 3, 14 * grid, 14 * grid)
        torch.testing.assert_close(model(image), as_timm(model, grid)(image), atol=1e-5, rtol=1e-5)

    def test_any_multiple_of_14(self):
        assert tiny()(torch.randn(1, 3, 28, 70)).shape == (1, 32)
        with pytest.raises(ValueError, match="30×28"):
            tiny()(torch.randn(1, 3, 30, 28))

    @torch.no_grad()
    def test_positions_follow_the_weights(self):
        model, image = tiny(), torch.randn(1, 3, 28, 28)
        before = model(image)
        model.pos_embed.mul_(2)
        after = model(image)
        model._positions.clear()
        assert torch.equal(after, model(image))
        assert not torch.equal(after, before)

    def test_frozen(self):
        model = DinoV2Embedding(TINY, grid=4)
        model.freeze()
        model.train()
        assert not any(part.training for part in model.modules())
        assert not any(p.requires_grad for p in model.parameters())


class TestPositions:
    def test_scale_rule(self):
        table = torch.randn(1, 1 + 37 * 37, 3)
        grid = table[:, 1:].reshape(1, 37, 37, 3).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, scale_factor=(16.1 / 37, 12.1 / 37), mode="bicubic")
        scaled = dinov2.scaled_positions(table, (16, 12))
        assert torch.equal(scaled[:, :1], table[:, :1])
        torch.testing.assert_close(scaled[:, 1:], expected.flatten(2).transpose(1, 2))

    @pytest.mark.parametrize("side", range(1, 60))
    def test_every_size_comes_out(self, side):
        assert dinov2.scaled_positions(torch.randn(1, 1370, 1), (side, 3)).shape == (1, 1 + 3 * side, 1)

    def test_stored_size_is_stored_table(self):
        table = torch.randn(1, 17, 3)
        assert dinov2.scaled_positions(table, (4, 4)) is table
        assert dinov2.resized_positions(table, (4, 4)) is table


class TestPyramid:
    def test_published_sizes(self):
        with torch.device("meta"):
            model = build_pyramid(NAME, image_size=(256, 256))
        assert sum(p.numel() for p in model.parameters()) == 336_185_112
        assert len(model.state_dict()) == 591
        model.freeze()
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 32_347_672

    def test_drop_path(self):
        with torch.device("meta"):
            model = build_pyramid(NAME, image_size=(224, 224))
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
        assert rates == pytest.approx([0.4 * i / 23 for i in range(24)])
        assert [i.extractor.drop_path.drop_prob for i in model.interactions] == [0.4] * 4

    def test_other_sizes_than_built_for(self):
        model = DinoV2Pyramid(TINY, grid=dinov2.pyramid_grid((64, 96)), heads=4, planes=8).eval()
        assert model.pos_embed.shape == (1, 37, 32)
        for height, width in ((64, 96), (96, 96), (128, 32)):
            maps = model(torch.randn(1, 3, height, width))
            assert [m.shape[-2:] for m in maps] == [(height // s, width // s) for s in (4, 8, 16, 32)]
        with pytest.raises(ValueError, match="multiples of 32"):
            model(torch.randn(1, 3, 48, 64))

    def test_frozen(self):
        model = DinoV2Pyramid(TINY, grid=4, heads=4, planes=8)
        model.freeze()
        model.train()
        sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
        learns = {name for name, p in model.named_parameters() if p.grad is not None}
        assert learns == {
            name
            for name in dict(model.named_parameters())
            if not name.startswith(("pos_", "patch_", "blocks.", "norm."))
        }
        assert "cls_token" in learns
        assert not model.blocks[0].training
        assert model.norm1.training
