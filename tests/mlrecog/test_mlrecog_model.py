"""The network of ML Recog: TAO's keys and numbers, widths, sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fiducial.backbones import dinov2
from fiducial.backbones.dinov2 import DinoV2Shape
from mlrecog.model import DualHead, LinearEmbedder, build_recognizer
from mlrecog.trunks import TRUNKS

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "stored"
sys.path.append(str(ROOT / "scripts"))

from parity_cases import load_runners, run_case  # noqa: E402

SMALL_DINO = DinoV2Shape(16, 2, 2, 24)


@pytest.mark.parametrize(
    "case",
    [
        "lr_ml_recog",
        "ml_recog_triplet",
        "ml_recog_knn",
        "ml_recog_metrics",
        "ml_recog_data",
        "ml_recog_resnet50",
        "ml_recog_fan_tiny",
        pytest.param("ml_recog_resnet50_train_mode", marks=pytest.mark.slow),
        pytest.param("ml_recog_resnet101", marks=pytest.mark.slow),
        pytest.param("ml_recog_nvdinov2_l_legacy", marks=pytest.mark.slow),
        pytest.param("train_ml_recog_resnet50", marks=pytest.mark.slow),
    ],
)
def test_stored_numbers(case):
    load_runners()
    outcome = run_case(STORED / f"{case}.json")
    assert outcome.status == "pass", outcome.note


@pytest.mark.parametrize(
    "case", ["ml_recog_resnet50", "ml_recog_resnet101", "ml_recog_fan_tiny", "ml_recog_nvdinov2_l_legacy"]
)
def test_a_saved_network_has_the_keys_of_tao_in_its_order(case):
    manifest = json.loads((STORED / f"{case}.json").read_text())
    model = manifest["config"]["model"]
    feat_dim = model["feat_dim"] if TRUNKS[model["backbone"]].has_linear_head else None
    with torch.device("meta"):
        network = build_recognizer(model["backbone"], feat_dim=feat_dim, image_size=(model["input_height"],) * 2)
    found = [(f"model.{key}", list(value.shape)) for key, value in network.state_dict().items()]
    # the classifier that TAO's FAN carries fits nothing behind it: TAO crashes, so that no file is without ours
    assert found == [(key, shape) for key, shape, _ in manifest["state_dict"] if ".trunk.head." not in key]


@pytest.mark.parametrize(
    ("backbone", "embedder"),
    [
        ("fan_tiny", 186_048),
        ("fan_small", 740_736),
        ("fan_base", 1_007_552),
        ("fan_large", 1_156_320),
        ("nvdinov2_vit_large_legacy", 5_252_096),
        ("resnet_50", 2048 * 2048 + 2048),
    ],
)
def test_without_a_width_the_embedding_is_as_wide_as_the_trunk(backbone, embedder):
    with torch.device("meta"):
        network = build_recognizer(backbone, feat_dim=None)
    assert network.embedding_dim == TRUNKS[backbone].width
    assert sum(parameter.numel() for parameter in network.embedder.parameters()) == embedder


@pytest.mark.parametrize("backbone", TRUNKS)
@pytest.mark.parametrize("feat_dim", [1, 64, 3000])
def test_every_backbone_has_any_width(backbone, feat_dim):
    with torch.device("meta"):
        network = build_recognizer(backbone, feat_dim=feat_dim).eval()
        assert network.embedding_dim == feat_dim
        assert network.embedder(torch.zeros(2, TRUNKS[backbone].width)).shape == (2, feat_dim)


@pytest.mark.parametrize("backbone", TRUNKS)
def test_what_is_known_of_trunks_is_true(backbone):
    info = TRUNKS[backbone]
    size = (4 * info.multiple, 6 * info.multiple) if info.multiple > 1 else (45, 71)
    with torch.device("meta"):
        trunk = build_recognizer(backbone, image_size=size).eval().trunk
        assert trunk(torch.zeros(2, 3, *size)).shape == (2, info.width)
        if info.multiple > 1:
            with pytest.raises(ValueError, match=f"multiples of {info.multiple}"):
                trunk(torch.zeros(2, 3, size[0] + 1, size[1]))


class TestNvdinov2:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        monkeypatch.setitem(dinov2.VARIANTS, "vit_large_nvdinov2", SMALL_DINO)

    def build(self, *size):
        torch.manual_seed(0)
        return build_recognizer("nvdinov2_vit_large_legacy", image_size=size).eval().trunk

    @pytest.mark.parametrize(("size", "cells"), [((224, 224), 256), ((56, 56), 16), ((56, 84), 36), ((98, 28), 49)])
    def test_positions_are_those_of_the_spec_s_size(self, size, cells):
        assert self.build(*size).pos_embed.shape == (1, 1 + cells, 16)

    def test_other_sizes_and_oblong_ones(self):
        trunk = self.build(56, 56)
        for size in ((56, 56), (84, 84), (28, 112)):
            assert trunk(torch.randn(1, 3, *size)).shape == (1, 16)


class TestEmbedders:
    def test_linear_has_one_layer_under_two_names(self):
        embedder = LinearEmbedder(5, 3)
        assert embedder.last_linear is embedder.net[0]
        assert len(list(embedder.parameters())) == 2
        features = torch.randn(4, 5)
        assert torch.allclose(embedder(features), features @ embedder.net[0].weight.T + embedder.net[0].bias)

    def test_dual_head_without_its_adapters_is_a_norm_and_a_layer(self):
        head = DualHead(8, 3)
        for name, parameter in head.named_parameters():
            if ".2." in name:
                nn.init.zeros_(parameter)
        x = torch.randn(4, 8)
        norm = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        want = norm @ head.embedding_fc[1].weight.T + head.embedding_fc[1].bias
        torch.testing.assert_close(head(x), want)

    def test_dual_head_adds_each_adapter_to_what_came_before(self):
        head = DualHead(2, 2)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        for adapter, amount in ((head.classifier_feat, 1.0), (head.classifier_feat3, 2.0)):
            adapter[2].bias.data.copy_(torch.tensor([amount, 0.0]))
        head.embedding_fc = nn.Identity()
        assert head(torch.tensor([[10.0, 20.0]])).tolist() == [[13.0, 20.0]]

    @pytest.mark.parametrize("head", [LinearEmbedder(6, 4), DualHead(6, 4)])
    def test_gradients(self, head):
        features = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(head.double(), features)


@pytest.mark.parametrize(
    ("options", "said"), [({"backbone": "resnet_18"}, "resnet_18"), ({"feat_dim": 0}, "an embedding of 0 numbers")]
)
def test_what_cannot_be_built(options, said):
    with pytest.raises(ValueError, match=said):
        build_recognizer(**options)
