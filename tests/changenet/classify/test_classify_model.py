"""The classify networks against stored outputs, and their own promises."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_pyramid import ToyPyramid

from changenet.classify.model import (
    EuclideanClassifier,
    LearnableClassifier,
    LearnableDecoder,
    WindowAttention,
    build_classifier,
    score,
)

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from parity_cases import load_runners, run_case  # noqa: E402

STORED = ROOT / "tests" / "stored"
SIZE = (64, 32)
MULTI_SIZE = (224, 224)


def fan(**options):
    torch.manual_seed(0)
    defaults = {"backbone": "fan_tiny_8_p4_hybrid", "difference_module": "learnable", "image_size": SIZE}
    return settled(build_classifier(**{**defaults, "embed_dim": 16, **options}))


def toy(num_golden: int = 1, modules_used: int = 4, size=MULTI_SIZE):
    torch.manual_seed(0)
    decoder = LearnableDecoder(
        channels=(4, 4, 4, 4),
        strides=(4, 8, 16, 32),
        image_size=size,
        embed_dim=8,
        embed_dec=5,
        num_classes=2,
        modules_used=modules_used,
        num_golden=num_golden,
    )
    return settled(LearnableClassifier(ToyPyramid(), decoder))


def settled(model):
    """In eval mode, with statistics and norms that show in the output."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim and "table" not in name:
            nn.init.normal_(tensor, std=0.2)
    return model.eval()


def pair(batch: int = 2, size=SIZE, num_golden: int | None = None):
    generator = torch.Generator().manual_seed(5)
    golden_shape = (batch, 3, *size) if num_golden is None else (batch, num_golden, 3, *size)
    return torch.randn(batch, 3, *size, generator=generator), torch.randn(golden_shape, generator=generator)


MODELS = {
    "learnable": (lambda: fan(), pair()),
    "two modules": (lambda: fan(learnable_difference_modules=2), pair()),
    "downsample": (lambda: fan(feat_downsample=True), pair()),
    "euclidean": (lambda: fan(difference_module="euclidean"), pair()),
    "euclidean downsample": (lambda: fan(difference_module="euclidean", feat_downsample=True), pair()),
    "several goldens": (lambda: toy(num_golden=3), pair(size=MULTI_SIZE, num_golden=3)),
}


@pytest.mark.parametrize(
    "case",
    [
        "classify_fan_tiny_ldm2",
        pytest.param("classify_fan_small_learnable", marks=pytest.mark.slow),
        pytest.param("classify_fan_small_euclidean", marks=pytest.mark.slow),
        pytest.param("train_classify_fan_tiny", marks=pytest.mark.slow),
    ],
)
def test_stored(case):
    load_runners()
    outcome = run_case(STORED / f"{case}.json")
    assert outcome.status == "pass", outcome.note


@pytest.mark.parametrize("case", ["classify_fan_tiny_ldm2", "classify_fan_small_euclidean"])
def test_order_of_keys(case):
    manifest = json.loads((STORED / f"{case}.json").read_text())
    options, shape = manifest["config"]["model"]["classify"], manifest["inputs"]["img0"]["shape"]
    with torch.device("meta"):
        model = build_classifier(
            backbone=manifest["config"]["model"]["backbone"]["type"],
            difference_module=options["difference_module"],
            image_size=tuple(shape[2:]),
            embed_dec=options["embed_dec"],
            learnable_difference_modules=options["learnable_difference_modules"],
        )
    found = [(f"model.{key}", list(value.shape)) for key, value in model.state_dict().items()]
    assert found == [(key, shape) for key, shape, _ in manifest["state_dict"] if not key.startswith("criterion")]


class TestEncodeCompare:
    @pytest.mark.parametrize("kind", MODELS)
    def test_equals_forward(self, kind):
        make, (test, golden) = MODELS[kind]
        model = make()
        with torch.no_grad():
            got = model.compare(model.encode(test), model.encode_golden(golden))
            want = model(test, golden)
        assert want.std() > 0
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["learnable", "euclidean", "several goldens"])
    def test_encodings_slice_and_stack(self, kind):
        make, (test, golden) = MODELS[kind]
        model = make()
        with torch.no_grad():
            kept = model.encode_golden(golden)
            again = tuple(torch.stack([part[1], part[0], part[1]]) for part in kept)
            got = model.compare(model.encode(test[[1, 0, 1]]), again)
            want = model(test, golden)[[1, 0, 1]]
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


class TestForward:
    def test_order_of_the_pair_matters(self):
        test, golden = pair()
        model = fan()
        with torch.no_grad():
            assert not torch.allclose(model(test, golden), model(golden, test))

    def test_distance_by_hand(self):
        test, golden = pair()
        model = fan(difference_module="euclidean")
        with torch.no_grad():
            a, b = model.encode(test)[0], model.encode(golden)[0]
            assert torch.allclose(model(test, golden), (a - b + 1e-6).square().sum(1).sqrt(), rtol=1e-4)
            assert torch.allclose(model(test, test), torch.full((2,), 1e-6 * 5**0.5), rtol=1e-2)

    def test_one_pass_in_eval_two_in_training(self):
        model, (test, golden) = toy(size=SIZE), pair()
        model(test, golden)
        assert model.backbone.num_passes == 1
        model.train()(test, golden)
        assert model.backbone.num_passes == 3

    def test_training_statistics_are_those_of_two_passes(self):
        model, (test, golden) = toy(size=SIZE).train(), pair()
        twin = ToyPyramid()
        twin.load_state_dict(model.backbone.state_dict())
        model(test, golden)
        twin(test)
        twin(golden)
        assert torch.equal(model.backbone.norm.running_var, twin.norm.running_var)

    def test_frozen_backbone(self):
        model = fan(freeze_backbone=True).train()
        assert not any(p.requires_grad for p in model.backbone.parameters())
        assert not any(module.training for module in model.backbone.modules())
        assert model.decoder.training

    @pytest.mark.parametrize("kind", MODELS)
    def test_every_trainable_parameter_gets_a_gradient(self, kind):
        make, images = MODELS[kind]
        model = make()
        model(*images).sum().backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []

    def test_linear_layout_keeps_the_number_of_pixels(self):
        model = fan(image_size=(32, 64))
        with torch.no_grad():
            assert model(*pair(size=(64, 32))).shape == (2, 2)


class TestSeveralGoldens:
    def test_window_attention_by_its_formula(self):
        attention = WindowAttention(4).double()
        x = torch.randn(1, 2, 4, 14, 7, dtype=torch.float64)
        with torch.no_grad():
            got = attention(x)
            tokens = x[0, :, :, 3::7, 5].permute(0, 2, 1).reshape(4, 4)  # offset (3, 5): 2 goldens x 2 windows
            q, k, v = (layer(tokens) for layer in (attention.W_q, attention.W_k, attention.W_v))
            want = tokens + attention.W_o((q @ k.T / 4**0.5).softmax(1) @ v)
        assert torch.allclose(got[0, :, :, 3::7, 5].permute(0, 2, 1).reshape(4, 4), want)

    def test_position_embedding_is_tiled(self):
        decoder = toy(num_golden=2).decoder
        for parameter in decoder.attn_c3.parameters():
            nn.init.zeros_(parameter)
        decoder.bn3 = nn.Identity()
        joined = decoder._join_goldens(3, torch.zeros(2, 8, 14, 14))
        assert torch.equal(joined[0, :, 3, 4], decoder.position_embedding_c3[0, :, 3 % 2, 4 % 2])

    def test_order_of_goldens_does_not_matter(self):
        model, (test, golden) = toy(num_golden=3), pair(size=MULTI_SIZE, num_golden=3)
        with torch.no_grad():
            assert torch.allclose(model(test, golden), model(test, golden[:, [2, 0, 1]]), rtol=1e-4, atol=1e-5)

    def test_only_the_first_passes_a_gradient(self):
        model, (test, golden) = toy(num_golden=3), pair(size=MULTI_SIZE, num_golden=3)
        golden.requires_grad_()
        model(test, golden).sum().backward()
        assert golden.grad[:, 0].abs().max() > 0
        assert golden.grad[:, 1:].abs().max() == 0

    def test_keys(self):
        shapes = {key: tuple(value.shape) for key, value in toy(num_golden=3).decoder.state_dict().items()}
        assert [shapes[f"position_embedding_c{i}"] for i in (1, 2, 3, 4)] == [(1, 8, n, n) for n in (8, 4, 2, 1)]
        assert shapes["attn_c1.scaling"] == ()
        assert shapes["bn4.running_var"] == (8,)

    def test_unusable_requests(self):
        with pytest.raises(ValueError, match="multiples of 7"):
            toy(num_golden=2, size=(256, 256))
        with pytest.raises(ValueError, match="learnable"):
            fan(difference_module="euclidean", num_golden=2)


class TestRefuses:
    @pytest.mark.parametrize("kind", ["learnable", "euclidean"])
    def test_other_sizes(self, kind):
        model, (test, golden) = MODELS[kind][0](), pair()
        with pytest.raises(ValueError, match=r"found \(2, 3, 64, 32\) and \(2, 3, 32, 64\)"):
            model(test, golden.transpose(2, 3))
        with pytest.raises(ValueError, match=r"found \(2, 3, 64, 32\) and \(1, 3, 64, 32\)"):
            model(test, golden[:1])
        with pytest.raises(ValueError, match="multiples of 16 pixels, found 64×24"):
            model(test[..., :24], golden[..., :24])

    def test_another_number_of_pixels_than_the_head_was_built_for(self):
        small = pair(size=(32, 32))
        with pytest.raises(ValueError, match="images of 2048 pixels, found 32×32"):
            fan()(*small)
        euclidean = fan(difference_module="euclidean")
        with pytest.raises(ValueError, match="1536 features, found 768"):
            euclidean(*small)
        with pytest.raises(ValueError, match="1536 features, found 768"):
            euclidean.encode(small[0])

    def test_another_number_of_goldens(self):
        one, three = fan(), toy(num_golden=3)
        with pytest.raises(ValueError, match=r"one golden: \(B, 3, H, W\), found shape \(2, 2, 3, 64, 32\)"):
            one(*pair(num_golden=2))
        for golden in (pair(size=MULTI_SIZE)[1], pair(size=MULTI_SIZE, num_golden=2)[1]):
            with pytest.raises(ValueError, match=r"3 goldens: \(B, 3, 3, H, W\), found shape"):
                three(golden if golden.ndim == 4 else golden[:, 0], golden)
            with pytest.raises(ValueError, match="3 goldens"):
                three.encode_golden(golden)

    def test_windows_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"multiples of 7, found shape \(1, 2, 8, 7, 8\)"):
            WindowAttention(8)(torch.zeros(1, 2, 8, 7, 8))


class TestScore:
    def test_of_logits(self):
        assert torch.allclose(score(torch.tensor([[0.0, 0.0], [0.0, 2.0]])), torch.tensor([0.5, 0.880797]))

    def test_of_distances(self):
        distance = torch.rand(4)
        assert score(distance) is distance


class TestGraphs:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["learnable", "euclidean"])
    def test_compiles_without_graph_breaks(self, kind):
        make, (test, golden) = MODELS[kind]
        model = make()
        with torch.no_grad():
            got = torch.compile(model, fullgraph=True, backend="eager")(test, golden)
            assert torch.allclose(got, model(test, golden), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("num_golden", [1, pytest.param(3, marks=pytest.mark.slow)])
    def test_exports_with_any_batch(self, num_golden):
        model = toy(num_golden, size=MULTI_SIZE)
        goldens = None if num_golden == 1 else num_golden
        batch = torch.export.Dim("batch", min=1, max=64)
        images = pair(2, MULTI_SIZE, goldens)
        program = torch.export.export(model, images, dynamic_shapes=({0: batch}, {0: batch}))
        more = pair(3, MULTI_SIZE, goldens)
        with torch.no_grad():
            assert torch.allclose(program.module()(*more), model(*more), rtol=1e-4, atol=1e-5)


def test_explicit_form_of_the_learnable_network():
    model, (test, golden) = toy(size=SIZE), pair()
    decoder = model.decoder
    with torch.no_grad():
        a, b = model.backbone(test), model.backbone(golden)
        diff = {}
        for i in (4, 3, 2, 1):
            linear = getattr(decoder, f"linear_c{i}")
            diff[i] = getattr(decoder, f"diff_c{i}")(torch.cat((linear(a[i - 1]), linear(b[i - 1])), 1))
            if i < 4:
                diff[i] = diff[i] + F.interpolate(diff[i + 1], scale_factor=2.0, mode="bilinear")
        size = diff[1].shape[-2:]
        fused = decoder.linear_fuse(torch.cat([F.interpolate(diff[i], size, mode="bilinear") for i in (4, 3, 2, 1)], 1))
        want = decoder.classifier(fused.flatten(1))
        assert torch.allclose(model(test, golden), want, rtol=1e-4, atol=1e-5)
    assert isinstance(model, LearnableClassifier)
    assert not isinstance(model, EuclideanClassifier)


class TestSharedGoldens:
    """Goldens named by place: the same output and gradients, without encoding one twice."""

    @pytest.mark.parametrize("kind", ["learnable", "euclidean"])
    def test_frozen_gives_the_same_in_one_pass_over_each_image_once(self, kind):
        model, seen = fan(difference_module=kind, freeze_backbone=True).double().train(), []
        model.backbone.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
        test, golden = (x.double() for x in pair(batch=4))
        place = torch.tensor([1, 0, 1, 1])
        found = []
        for pictures in ((golden[place], None), (golden[:2], place)):
            model.zero_grad()
            output = model(test, *pictures)
            output.square().sum().backward()
            found.append([output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert seen == [8, 6]
        for plain, shared in zip(*found, strict=True):
            torch.testing.assert_close(shared, plain)

    def test_batch_statistics_see_every_golden_of_every_row(self):
        """A backbone in training sees the goldens as many times as rows have them, as in TAO."""
        (test, golden), place = pair(batch=4), torch.tensor([1, 0, 1, 1])
        found = []
        for pictures in ((golden[place], None), (golden[:2], place)):
            torch.manual_seed(0)
            model = toy(size=SIZE).train()
            found.append((model(test, *pictures), model.backbone.norm.running_var))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

    @pytest.mark.parametrize("kind", ["learnable", "euclidean"])
    def test_features_are_what_forward_makes_of_images(self, kind):
        model, (test, golden) = fan(difference_module=kind).eval(), pair()
        with torch.no_grad():
            kept = model.from_features(model.features(test), model.features(golden[:1]), torch.tensor([0, 0]))
            torch.testing.assert_close(kept, model(test, golden[[0, 0]]), rtol=1e-4, atol=1e-5)
