"""FAN hybrid against stored outputs, timm's XCiT parts and its own promises."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.xcit import ClassAttentionBlock, PositionalEncodingFourier
from torch import nn

from fiducial.backbones.fan import FanMap, FanPyramid, build, build_class_token
from fiducial.backbones.fan_parts import LayerNorm2d, fourier_table
from fiducial.backbones.names import BACKBONES, build_embedding, build_pyramid

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from parity_cases import load_runners, run_case  # noqa: E402

STORED = ROOT / "tests" / "stored"
SIZE = (64, 96)


def tiny(**options) -> FanPyramid:
    torch.manual_seed(0)
    model = build("fan_tiny_8_p4_hybrid", "pyramid", image_size=SIZE, **options)
    for parameter in model.parameters():  # layer scales of 1e-6 would hide half of the network
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


class TestStored:
    @pytest.mark.parametrize(
        "case",
        [
            "fan_tiny_pyramid",
            "fan_small_pyramid_downsample",
            pytest.param("fan_base_pyramid", marks=pytest.mark.slow),
            pytest.param("fan_large_pyramid", marks=pytest.mark.slow),
        ],
    )
    def test_pyramid(self, case):
        load_runners()
        outcome = run_case(STORED / f"{case}.json")
        assert outcome.status == "pass", outcome.note

    @pytest.mark.parametrize("case", ["fan_tiny_pyramid", "fan_small_pyramid_downsample"])
    def test_order_of_keys(self, case):
        manifest = json.loads((STORED / f"{case}.json").read_text())
        config = dict(manifest["config"])
        with torch.device("meta"):
            model = build_pyramid(config.pop("name"), image_size=SIZE, **config)
        found = [(key, list(value.shape)) for key, value in model.state_dict().items()]
        assert found == [(key, shape) for key, shape, _ in manifest["state_dict"]]


@pytest.mark.parametrize(
    ("name", "downsample", "num_parameters", "num_keys"),
    [
        ("fan_tiny_8_p4_hybrid", False, 7_273_856, 351),
        ("fan_tiny_8_p4_hybrid", True, 8_601_728, 353),
        ("fan_small_12_p4_hybrid", False, 25_732_176, 413),
        ("fan_small_12_p4_hybrid", True, 28_387_152, 415),
        ("fan_base_16_p4_hybrid", False, 50_025_152, 599),
        ("fan_base_16_p4_hybrid", True, 53_122_496, 601),
        ("fan_large_16_p4_hybrid", False, 76_373_180, 803),
        ("fan_large_16_p4_hybrid", True, 79_691_708, 805),
    ],
)
def test_size_of_the_network(name, downsample, num_parameters, num_keys):
    with torch.device("meta"):
        model = build_pyramid(name, image_size=SIZE, feat_downsample=downsample)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert len(model.state_dict()) == num_keys


class TestShapes:
    def test_maps(self, images):
        info = BACKBONES["fan_tiny_8_p4_hybrid"]
        with torch.no_grad():
            maps = tiny().eval()(images)
        want = [(2, c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(info.channels, info.strides, strict=True)]
        assert [tuple(x.shape) for x in maps] == want

    def test_embedding_is_the_last_map(self, images):
        pyramid = tiny().eval()
        embedding = build_embedding("fan_tiny_8_p4_hybrid", image_size=SIZE).eval()
        embedding.load_state_dict(pyramid.state_dict())
        with torch.no_grad():
            got, want = embedding(images), pyramid(images)[-1].flatten(1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # its linear layers round otherwise
        assert got.shape[1] == BACKBONES["fan_tiny_8_p4_hybrid"].embedding_width(*SIZE)

    def test_other_sizes_than_the_built_one(self):
        model = tiny().eval()
        other = build("fan_tiny_8_p4_hybrid", "pyramid", image_size=(32, 48)).eval()
        other.load_state_dict(model.state_dict())
        x = torch.randn(1, 3, 32, 48)
        with torch.no_grad():
            assert torch.equal(model(x)[-1], other(x)[-1])

    def test_memory_layout_changes_nothing(self, images):
        model = tiny().eval().double()
        with torch.no_grad():
            plain = model(images.double())[-1]
            channels_last = model(images.double().contiguous(memory_format=torch.channels_last))[-1]
        assert torch.allclose(plain, channels_last, rtol=1e-10, atol=1e-10)

    def test_unknown_name_or_role(self):
        with pytest.raises(ValueError, match="fan_huge"):
            build("fan_huge", "pyramid", image_size=SIZE)
        with pytest.raises(ValueError, match="classifier"):
            build("fan_tiny_8_p4_hybrid", "classifier", image_size=SIZE)


@pytest.mark.parametrize("unbiased", [True, False])
def test_layer_norm_2d_by_its_formula(unbiased):
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    norm = LayerNorm2d(6, unbiased=unbiased).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    variance = x.var(1, correction=int(unbiased), keepdim=True)
    want = (x - x.mean(1, keepdim=True)) / (variance + 1e-6).sqrt()
    want = want * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x), want, rtol=1e-12, atol=1e-12)


class TestAgainstXcit:
    def test_position_encoding(self):
        theirs = PositionalEncodingFourier(dim=8)
        ours = F.conv2d(fourier_table(5, 7), theirs.token_projection.weight, theirs.token_projection.bias)
        assert torch.allclose(ours, theirs(1, 5, 7), atol=1e-6)

    def test_class_attention_leaves_patches_alone(self):
        block = tiny().eval().cls_attn_blocks[0]
        theirs = ClassAttentionBlock(192, 8, qkv_bias=True, tokens_norm=True).eval()
        theirs.norm1.eps = theirs.norm2.eps = 1e-6
        theirs.load_state_dict(block.state_dict())
        patches, class_token = torch.randn(2, 9, 192), torch.randn(2, 1, 192)
        with torch.no_grad():
            want = theirs(torch.cat((class_token, patches), 1))[:, 1:]
            assert torch.allclose(block(patches), want, atol=1e-5)


class TestTraining:
    def test_every_trainable_parameter_gets_a_gradient(self, images):
        model = tiny().eval()
        sum(x.sum() for x in model(images)).backward()
        assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())

    def test_freeze(self):
        model = tiny(feat_downsample=True)
        model.freeze()
        model.train()
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == {"learnable_downsample.weight", "learnable_downsample.bias"}
        assert {name for name, module in model.named_modules() if module.training} == {"learnable_downsample"}

    def test_frozen_is_deterministic_in_training(self, images):
        model = tiny()
        model.freeze()
        model.train()
        assert all(torch.equal(a, b) for a, b in zip(model(images), model(images), strict=True))

    def test_drop_path_in_training_only(self, images):
        model = tiny()
        assert not torch.equal(model(images)[-1], model(images)[-1])
        model.eval()
        assert torch.equal(model(images)[-1], model(images)[-1])

    def test_activation_checkpointing_changes_nothing(self, images):
        results = []
        for checkpointing in (False, True):
            model = tiny(activation_checkpointing=checkpointing)
            torch.manual_seed(3)  # the same blocks are dropped
            loss = sum((x.square().mean() for x in model(images)), torch.zeros(()))
            loss.backward()
            gradient = model.patch_embed.backbone.stem[0].weight.grad
            results.append((loss.detach(), gradient, model.blocks[0].mlp.mlp_v.dwconv.bn.running_mean.clone()))
        for plain, checkpointed in zip(*results, strict=True):
            assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)

    def test_initial_values(self):
        model = build("fan_tiny_8_p4_hybrid", "pyramid", image_size=SIZE)
        block = model.blocks[0]
        assert block.mlp.q.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp.q.bias.abs().max() == 0
        assert block.mlp.mlp_v.dwconv.conv1.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
        assert set(block.gamma1.tolist()) == {1.0}
        assert model.patch_embed.backbone.stages[0].blocks[0].gamma.tolist() == pytest.approx([1e-6] * 128)


class TestClassToken:
    """The same network, asked for its class token."""

    def embedding(self, **options):
        torch.manual_seed(0)
        model = build_class_token("fan_tiny_8_p4_hybrid", image_size=SIZE, **options)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        return model

    def test_is_what_the_class_attention_of_timm_makes_of_the_pyramids_tokens(self, images):
        model, pyramid = self.embedding().eval(), tiny().eval()
        pyramid.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("norm.")})
        with torch.no_grad():
            tokens = pyramid(images)[2].flatten(2).transpose(1, 2)  # the third map is that of the last block
            x = torch.cat((model.cls_token.expand(len(images), -1, -1), tokens), 1)
            for ours in model.cls_attn_blocks:
                theirs = ClassAttentionBlock(192, 8, qkv_bias=True, tokens_norm=True).eval()
                theirs.norm1.eps = theirs.norm2.eps = 1e-6
                theirs.load_state_dict(ours.state_dict())
                x = theirs(x)
            want = F.layer_norm(x[:, 0], (192,), model.norm.weight, model.norm.bias, 1e-6)
            torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            ("fan_tiny_8_p4_hybrid", 7_274_240),
            ("fan_small_12_p4_hybrid", 25_732_944),
            ("fan_base_16_p4_hybrid", 50_026_048),
            ("fan_large_16_p4_hybrid", 76_374_140),
        ],
    )
    def test_published_sizes(self, name, parameters):
        with torch.device("meta"):
            model = build_class_token(name, image_size=SIZE)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    def test_every_parameter_is_trained_and_nothing_is_dropped(self, images):
        model = self.embedding().train()
        assert torch.equal(model(images), model(images))
        model(images).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_activation_checkpointing_changes_nothing(self, images):
        results = []
        for checkpointing in (False, True):
            model = self.embedding(activation_checkpointing=checkpointing)
            model(images).square().mean().backward()
            mean = model.blocks[0].mlp.mlp_v.dwconv.bn.running_mean.clone()
            results.append((model.patch_embed.proj.weight.grad, model.cls_token.grad, mean))
        for plain, checkpointed in zip(*results, strict=True):
            assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)

    def test_other_sizes_than_the_built_one(self):
        model, other = self.embedding().eval(), build_class_token("fan_tiny_8_p4_hybrid", image_size=(32, 48)).eval()
        other.load_state_dict(model.state_dict())
        x = torch.randn(1, 3, 32, 48)
        with torch.no_grad():
            assert torch.equal(model(x), other(x))

    @pytest.mark.parametrize("shape", [(1, 3, 40, 64), (1, 1, 64, 64)])
    def test_wrong_images(self, shape):
        with pytest.raises(ValueError, match=r"multiples of 16|images must be"):
            self.embedding()(torch.zeros(shape))

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="fan_huge"):
            build_class_token("fan_huge", image_size=SIZE)


class TestGraphs:
    @pytest.mark.slow
    def test_export_with_any_batch(self, images):
        model = tiny().eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
        x = torch.randn(3, 3, *SIZE)
        with torch.no_grad():
            assert torch.allclose(program.module()(x)[-1], model(x)[-1], atol=1e-4)

    @pytest.mark.slow
    def test_compiles_without_graph_breaks(self, images):
        model = tiny().eval()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            assert torch.allclose(compiled(images)[-1], model(images)[-1], atol=1e-5)


class TestMap:
    NAME = "fan_tiny_8_p4_hybrid"

    def map_of(self, pyramid, **options) -> FanMap:
        """With the weights of a pyramid, and a last norm that is seen."""
        torch.manual_seed(3)
        made = FanMap(self.NAME, image_size=SIZE, **options)
        nn.init.normal_(made.norm.weight)
        nn.init.normal_(made.norm.bias)
        made.load_state_dict(made.state_dict() | pyramid.state_dict())
        return made

    def test_is_the_last_map_of_the_pyramid_normed(self, images):
        pyramid = tiny().eval()
        made = self.map_of(pyramid).eval()
        with torch.no_grad():
            last = pyramid(images)[-1].permute(0, 2, 3, 1)
            want = F.layer_norm(last, (192,), made.norm.weight, made.norm.bias, 1e-6).permute(0, 3, 1, 2)
            assert torch.allclose(made(images), want, atol=1e-5)

    def test_keys_are_those_of_the_classifier_without_its_head(self):
        with torch.device("meta"):
            pyramid, made = build(self.NAME, "pyramid", image_size=SIZE), FanMap(self.NAME, image_size=SIZE)
        assert set(made.state_dict()) == {*pyramid.state_dict(), "norm.weight", "norm.bias"}
        assert sum(p.numel() for p in made.parameters()) == 7_467_240 - 193 * 1000

    def test_rates_of_stochastic_depth_grow_to_that_of_the_last_block(self):
        with torch.device("meta"):
            made = FanMap(self.NAME, image_size=SIZE, drop_path=0.7)
        assert [block.drop_path.drop_prob for block in made.blocks] == pytest.approx([i / 10 for i in range(8)])

    def test_sides_that_are_no_multiple(self):
        with pytest.raises(ValueError, match="multiples of 16"):
            FanMap(self.NAME, image_size=SIZE)(torch.zeros(1, 3, 40, 64))

    def test_frozen_stages(self, images):
        made = self.map_of(tiny())
        assert made.freeze_stages([0, 2, 9, -1]) == {9, -1}
        made.train()
        before = made.blocks[1].mlp.mlp_v.dwconv.bn.running_mean.clone()
        made(images).sum().backward()
        trained = {name for name, p in made.named_parameters() if p.grad is not None}
        assert any(name.startswith("blocks.0.") for name in trained)
        assert not any(name.startswith(("blocks.1.", "patch_embed.")) for name in trained)
        assert torch.equal(made.blocks[1].mlp.mlp_v.dwconv.bn.running_mean, before)

    def test_recomputed_activations_give_the_same(self, images):
        pyramid, found = tiny(), []
        for again in (False, True):
            made = self.map_of(pyramid, activation_checkpointing=again).train()
            made(images).square().sum().backward()
            bn = made.blocks[0].mlp.mlp_v.dwconv.bn
            found.append((made.blocks[0].attn.q.weight.grad, bn.running_mean, bn.num_batches_tracked))
        for plain, recomputed in zip(*found, strict=True):
            assert torch.equal(plain, recomputed)
