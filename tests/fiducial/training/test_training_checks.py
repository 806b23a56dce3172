"""Rules on the backbone section: what may be frozen, and where a frozen DINOv3's weights come from."""

import pytest

from fiducial.training.checks import WEIGHTS_KEY, check_backbone_weights, check_frozen
from fiducial.training.sections import BackboneSection

DINO3, REPOSITORY = "vit_small_dinov3", "timm/vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache, repository):
    folder = cache / f"models--{repository.replace('/', '--')}"
    file = folder / "snapshots/abc/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")


class TestFrozenDinoV3:
    def test_takes_the_published_weights_of_the_hub_cache(self, hub_cache):
        backbone = BackboneSection(type=DINO3, freeze_backbone=True)
        assert backbone.weights == REPOSITORY
        assert list(check_frozen(backbone, None)) == []
        put(hub_cache, REPOSITORY)
        assert list(check_backbone_weights(backbone, None)) == []

    def test_nothing_is_fetched_that_the_spec_does_not_name(self, hub_cache):
        (problem,) = check_backbone_weights(BackboneSection(type=DINO3, freeze_backbone=True), None)
        assert (problem.where, problem.level) == (WEIGHTS_KEY, "error")
        assert REPOSITORY in problem.fix
        named = BackboneSection(type=DINO3, freeze_backbone=True, pretrained_backbone_path=REPOSITORY)
        (problem,) = check_backbone_weights(named, None)
        assert problem.level == "warning"
        assert "training downloads it" in problem.fix

    def test_the_weights_of_another_size(self, hub_cache):
        named = BackboneSection(type="vit_base_dinov3", freeze_backbone=True, pretrained_backbone_path=REPOSITORY)
        (problem,) = check_backbone_weights(named, None)
        assert (problem.level, "holds vit_small_dinov3, not vit_base_dinov3" in problem.found) == ("error", True)

    def test_a_whole_network_needs_none(self, hub_cache, tmp_path):
        whole = tmp_path / "model.pth"
        whole.write_bytes(b"x")
        assert list(check_backbone_weights(BackboneSection(type=DINO3, freeze_backbone=True), str(whole))) == []


def test_training_all_of_dinov3_is_told_of():
    (problem,) = check_frozen(BackboneSection(type=DINO3), None)
    assert (problem.where, problem.level) == ("model.backbone.freeze_backbone", "warning")
    assert BackboneSection(type=DINO3).weights is None


def test_other_backbones_need_weights_to_be_frozen():
    (problem,) = check_frozen(BackboneSection(freeze_backbone=True), None)
    assert problem.level == "error"
    assert list(check_frozen(BackboneSection(), None)) == []
