import pytest
import timm
import torch

from fiducial.backbones.dinov3 import DinoV3Embedding, DinoV3Pyramid, build_vit
from fiducial.backbones.names import BACKBONES, build_embedding, build_pyramid

TINY = {"embed_dim": 32, "depth": 4, "num_heads": 4}
SMALL_ADAPTER = {"heads": 4, "planes": 8}
PUBLISHED = [  # name, width, depth, parameters and tensors of the ViT
    ("vit_small_dinov3", 384, 12, 21_586_944, 162),
    ("vit_small_plus_dinov3", 384, 12, 28_683_264, 186),
    ("vit_base_dinov3", 768, 12, 85_641_216, 162),
    ("vit_large_dinov3", 1024, 24, 303_079_424, 318),
    ("vit_huge_plus_dinov3", 1280, 32, 840_509_440, 486),
    ("vit_7b_dinov3", 4096, 40, 6_716_030_976, 606),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny_vit(kind="small", **changes):
    """With layer scales and tokens that count: timm's are near 0."""
    vit = build_vit(f"vit_{kind}_dinov3", **TINY | changes)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith(("gamma_1", "gamma_2", "token")):
                parameter.normal_()
    return vit


def tiny_pyramid(**options):
    return DinoV3Pyramid(tiny_vit(), **SMALL_ADAPTER, **options)


class TestPublished:
    @pytest.mark.parametrize(("name", "width", "depth", "parameters", "tensors"), PUBLISHED)
    def test_sizes(self, name, width, depth, parameters, tensors):
        with torch.device("meta"):
            model = build_embedding(name, image_size=(224, 224))
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert len(model.state_dict()) == tensors
        assert all(key.startswith("inner.") for key in model.state_dict())
        info = BACKBONES[name]
        assert (info.depth, info.embedding_width(224, 224)) == (depth, width)
        assert model.inner.blocks[0].norm1.eps == 1e-5
        assert model.inner.blocks[0].attn.qkv.bias is None

    @pytest.mark.parametrize(("name", "width"), [(name, width) for name, width, *_ in PUBLISHED])
    def test_pyramid(self, name, width):
        with torch.device("meta"):
            model = build_pyramid(name, image_size=(224, 224), use_summary_token=True)
            plain = build_pyramid(name, image_size=(224, 224), use_summary_token=False)
        assert BACKBONES[name].channels == (width,) * 4
        assert model.fc_summary.weight.shape == (width, 5 * width)
        assert not any(key.startswith(("fc_summary", "conv")) for key in plain.state_dict())
        assert [i.extractor.drop_path.drop_prob for i in model.interactions] == [0.4] * 4
        assert model.interactions[0].injector.query_norm.eps == 1e-5


class TestEmbedding:
    @pytest.mark.parametrize("kind", ["small", "small_plus"])
    @pytest.mark.parametrize("size", [(64, 64), (32, 96)])
    @torch.no_grad()
    def test_equals_timm(self, kind, size):
        vit, image = tiny_vit(kind).eval(), torch.randn(2, 3, *size)
        reference = timm.create_model(f"vit_{kind}_patch16_dinov3", num_classes=0, global_pool="token", **TINY).eval()
        reference.load_state_dict(vit.state_dict())
        expected = reference(image)
        assert expected.std() > 0.1
        torch.testing.assert_close(DinoV3Embedding(vit).eval()(image), expected)

    def test_sides(self):
        with pytest.raises(ValueError, match="24×32"):
            DinoV3Embedding(tiny_vit())(torch.randn(1, 3, 24, 32))

    @torch.no_grad()
    def test_the_order_of_the_patches_counts(self):
        model, image = DinoV3Embedding(tiny_vit()).eval(), torch.randn(1, 3, 32, 64)
        assert not torch.allclose(model(image), model(image.flip(2)), atol=1e-3)

    def test_recomputed_activations_give_the_same_gradients(self):
        image, gradients = torch.randn(2, 3, 32, 32), []
        vit = tiny_vit()
        for recompute in (False, True):
            vit.zero_grad()
            DinoV3Embedding(vit, activation_checkpointing=recompute)(image).square().sum().backward()
            gradients.append([p.grad.clone() for p in vit.parameters()])
        torch.testing.assert_close(*gradients)

    def test_frozen(self):
        model = DinoV3Embedding(tiny_vit())
        model.freeze()
        model.train()
        assert not any(part.training for part in model.modules())
        assert not any(p.requires_grad for p in model.parameters())


class TestPyramid:
    @pytest.mark.parametrize("summary", [True, False])
    def test_maps_of_any_size(self, summary):
        model = tiny_pyramid(use_summary_token=summary).eval()
        for height, width in ((64, 64), (32, 96)):
            maps = model(torch.randn(1, 3, height, width))
            assert [tuple(m.shape[1:]) for m in maps] == [(32, height // s, width // s) for s in (4, 8, 16, 32)]
        with pytest.raises(ValueError, match="multiples of 32"):
            model(torch.randn(1, 3, 48, 64))

    @torch.no_grad()
    def test_last_stage_is_timms_where_nothing_is_injected(self):
        """Without the injectors the patches pass the ViT as it is: what the adapter adds to its third map."""
        model = tiny_pyramid(use_summary_token=False).eval()
        for interaction in model.interactions:
            interaction.injector.ls.gamma.zero_()
        image, seen = torch.randn(1, 3, 64, 64), []
        model.vit.blocks[3].register_forward_hook(lambda module, given, output: seen.append(output))
        model(image)
        vit = model.vit
        expected = vit.forward_intermediates(image, indices=[3], norm=False, intermediates_only=True, output_fmt="NLC")
        torch.testing.assert_close(seen[0][:, 5:], expected[0])

    def test_frozen(self):
        model = tiny_pyramid()
        model.freeze()
        model.train()
        sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
        learns = {name for name, p in model.named_parameters() if p.grad is not None}
        assert learns == {name for name in dict(model.named_parameters()) if not name.startswith("vit.")}
        assert not any(part.training for part in model.vit.modules())
        assert model.norm1.training

    def test_the_final_norm_takes_no_gradient(self):
        model = tiny_pyramid()
        sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
