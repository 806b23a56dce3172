"""The mask network: shapes, sizes of boxes, TAO's keys, stored numbers."""

import sys
from pathlib import Path

import pytest
import torch

from fiducial.backbones.mae import build_vit
from fiducial.backbones.vit_names import parse_vit
from mal.model import build_labeler, size_bucket

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from parity_cases import load_runners, run_case  # noqa: E402

TINY = {"arch": "vit-deit-tiny/16", "hidden": 8, "out_dim": 8}


def crops(count=3, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", ["lr_mal", "mal_data", "mal_losses", "mal_mean_field"])
def test_stored_numbers(case):
    load_runners()
    outcome = run_case(ROOT / "tests" / "stored" / f"{case}.json")
    assert outcome.status == "pass", outcome.note


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["mal_validation", "mal_vit_base_224", "mal_vit_base_not_adjust_scale", "train_mal_vit_base"]
)
def test_stored_numbers_of_whole_networks(case):
    load_runners()
    outcome = run_case(ROOT / "tests" / "stored" / f"{case}.json")
    assert outcome.status == "pass", outcome.note


class TestBuckets:
    def test_limits_belong_to_the_smaller_side(self):
        areas = torch.tensor([1.0, 1024, 1024.5, 9216, 9217, 1e9])
        assert size_bucket(areas).tolist() == [0, 0, 1, 1, 2, 2]

    def test_each_box_is_looked_at_in_its_own_size(self):
        network, images = build_labeler(**TINY).eval(), crops()
        together = network(images, torch.tensor([100.0, 5000.0, 20000.0]))
        alone = [network(images[i : i + 1], torch.tensor([a])) for i, a in enumerate((100.0, 5000.0, 20000.0))]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)
        other = network(images, torch.tensor([20000.0, 5000.0, 20000.0]))
        assert not torch.allclose(together[0], other[0])
        assert torch.allclose(together[1:], other[1:], atol=1e-5)


class TestShapes:
    def test_logits_are_four_times_finer_than_patches(self):
        assert build_labeler(**TINY)(crops(), torch.full((3,), 50.0)).shape == (3, 1, 16, 16)

    def test_without_adjusting_they_are_eight_times_finer(self):
        network = build_labeler(**TINY, adjust_scale=False)
        assert network(crops(), torch.full((3,), 50.0)).shape == (3, 1, 32, 32)

    @pytest.mark.parametrize("options", [{"scale": 3.0}, {"scale_before": 2.0}, {"num_convs": 3}])
    def test_settings_that_do_not_go_together(self, options):
        with pytest.raises(ValueError, match=r"scales|convolutions"):
            build_labeler(**TINY, **options)

    def test_sides_that_are_no_multiple_of_the_patch(self):
        with pytest.raises(ValueError, match="patches of 16"):
            build_labeler(**TINY)(torch.zeros(1, 3, 60, 64), torch.ones(1))


def test_keys_and_counts_of_tao():
    network = build_labeler("vit-mae-base/16")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert counts == {"backbone": 86_567_656, "roi_head": 262_656, "mask_head": 3_539_968}
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert shapes["backbone.pos_embed"] == [1, 197, 768]
    assert shapes["backbone.head.weight"] == [1000, 768]
    assert shapes["mask_head.convs.0.conv.weight"] == [256, 768, 3, 3]


class TestFreezing:
    def test_frozen_stages_get_no_gradient_and_stay_in_evaluation_mode(self):
        network = build_vit("vit-deit-tiny/16")
        assert network.freeze_stages({0, 2, 99, -1}) == {99, -1}
        network.train()
        assert not any(p.requires_grad for part in (network.patch_embed, network.blocks[1]) for p in part.parameters())
        assert network.blocks[0].attn.qkv.weight.requires_grad
        assert (network.blocks[1].training, network.blocks[0].training) == (False, True)


class TestPositions:
    def test_a_kept_table_is_made_anew_when_weights_change(self):
        network = build_vit("vit-deit-tiny/16").eval().requires_grad_(False)
        image = crops(1)
        before = network(image)
        assert torch.equal(network(image), before)
        network.pos_embed.add_(1)
        assert not torch.allclose(network(image), before)

    def test_other_sizes(self):
        network = build_vit("vit-deit-tiny/16").eval()
        assert network(torch.zeros(1, 3, 32, 96)).shape == (1, 192, 2, 6)


@pytest.mark.parametrize(
    ("name", "dim", "patch"),
    [
        ("vit-mae-base/16", 768, 16),
        ("vit-deit-tiny/8", 192, 8),
        ("vit-mae-huge/14", 1280, 14),
        ("vit-mae-large/16", 1024, 16),
    ],
)
def test_names(name, dim, patch):
    size, found = parse_vit(name)
    assert (size.dim, found) == (dim, patch)


@pytest.mark.parametrize(
    "name", ["resnet50", "vit-mae-base", "vit-mae-giant/16", "vit-mae-base/32", "fan_tiny_8_p4_hybrid", ""]
)
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="vision transformer"):
        parse_vit(name)
