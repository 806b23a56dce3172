"""Weights from MAE, timm, DeiT, the research code and TAO."""

import pytest
import torch

from fiducial.backbones.mae import build_vit
from fiducial.checkpoints.reading import read
from fiducial.errors import CheckpointError
from mal.model import build_labeler
from mal.weights import load_networks, start_from

ARCH = "vit-deit-tiny/16"
MOCO = ("base_encoder", "momentum_encoder")
SMALL = {"hidden": 8, "out_dim": 8}


def networks():
    return build_labeler(ARCH, **SMALL), build_labeler(ARCH, **SMALL)


def saved(folder, tree):
    path = folder / "weights.pth"
    torch.save(tree, path)
    return read(path)


def backbone_weights(*, head=True):
    torch.manual_seed(1)
    weights = build_vit(ARCH).state_dict()
    return weights if head else {key: value for key, value in weights.items() if not key.startswith("head.")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w},
        lambda w: {"state_dict": w},
        lambda w: w,
        lambda w: {"model": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {"state_dict": {f"model.backbone.{k}": v for k, v in w.items()}},
        lambda w: {"model": {f"_orig_mod.encoder.{k}": v for k, v in w.items()}},
        lambda w: {
            "state_dict": {f"module.{side}.{k}": v * (side == "base_encoder") for k, v in w.items() for side in MOCO}
        },
    ],
)
def test_a_backbone_goes_into_both_networks(tmp_path, wrap):
    weights = backbone_weights(head=False)
    student, teacher = networks()
    said = start_from(student, teacher, saved(tmp_path, wrap(weights)))
    for network in (student, teacher):
        assert torch.equal(network.backbone.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    assert "tensors loaded" in said


def test_the_student_of_a_checkpoint_goes_into_both_networks(tmp_path):
    given, _ = networks()
    tree = {f"student.{k}": v for k, v in given.state_dict().items()}
    tree |= {f"teacher.{k}": torch.zeros_like(v) for k, v in given.state_dict().items()}
    student, teacher = networks()
    start_from(student, teacher, saved(tmp_path, {"state_dict": tree}))
    for network in (student, teacher):
        assert torch.equal(network.mask_head.convs[0].conv.weight, given.mask_head.convs[0].conv.weight)


def test_a_checkpoint_loads_into_both(tmp_path):
    given = networks()
    tree = {
        f"{side}.{k}": v
        for side, net in zip(("student", "teacher"), given, strict=True)
        for k, v in net.state_dict().items()
    }
    student, teacher = networks()
    load_networks(student, teacher, saved(tmp_path, {"state_dict": tree}))
    for ours, theirs in zip((student, teacher), given, strict=True):
        assert torch.equal(ours.roi_head.mlp1.weight, theirs.roi_head.mlp1.weight)


def test_a_student_alone_is_the_teacher_too_and_the_unused_head_may_be_missing(tmp_path):
    given, _ = networks()
    tree = {f"student.{k}": v for k, v in given.state_dict().items() if "backbone.head" not in k}
    student, teacher = networks()
    load_networks(student, teacher, saved(tmp_path, {"state_dict": tree}))
    assert torch.equal(teacher.roi_head.mlp1.weight, given.roi_head.mlp1.weight)


class TestRefused:
    def test_a_backbone_as_checkpoint(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"ViT \(MAE, DeiT\) alone, no MAL checkpoint"):
            load_networks(*networks(), saved(tmp_path, {"model": backbone_weights()}))

    def test_something_else(self, tmp_path):
        with pytest.raises(CheckpointError, match="no MAL checkpoint"):
            load_networks(*networks(), saved(tmp_path, {"fc.weight": torch.ones(1)}))

    def test_another_size(self, tmp_path):
        other = build_vit("vit-deit-small/16").state_dict()
        with pytest.raises(CheckpointError):
            start_from(*networks(), saved(tmp_path, {"model": other}))

    def test_less_than_most_of_a_backbone(self, tmp_path):
        weights = {k: v for k, v in backbone_weights().items() if "blocks.1" not in k}
        with pytest.raises(CheckpointError, match="tensors match"):
            start_from(*networks(), saved(tmp_path, {"model": weights}))
        assert start_from(*networks(), saved(tmp_path, {"model": weights}), strict=False)

    def test_the_stem_of_the_research_code(self, tmp_path):
        weights = {f"student.backbone.{k}": v for k, v in backbone_weights().items() if "patch_embed" not in k}
        weights["student.backbone.patch_embed.proj.0.0.weight"] = torch.ones(1)
        with pytest.raises(CheckpointError, match="stack of convolutions"):
            start_from(*networks(), saved(tmp_path, {"state_dict": weights}))


def test_a_file_of_hugging_face_transformers(tmp_path):
    """Its decoder is left out, as MAE's own is."""
    weights = backbone_weights(head=False)
    names = {"patch_embed.proj.": "embeddings.patch_embeddings.projection.", "norm.": "layernorm."}
    names |= {
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.output.dense.",
    }
    names |= {".mlp.fc1.": ".intermediate.dense.", ".mlp.fc2.": ".output.dense.", "blocks.": "encoder.layer."}
    names |= {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    given = {"decoder.decoder_norm.weight": torch.ones(3)}
    for key, value in weights.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        parts = value.chunk(3) if ".qkv." in key else [value]
        for part, name in zip(parts, ("query", "key", "value"), strict=False):
            given["vit." + key.replace(".attn.qkv.", f".attention.attention.{name}.")] = part
    student, teacher = networks()
    start_from(student, teacher, saved(tmp_path, given))
    for network in (student, teacher):
        assert all(torch.equal(network.backbone.state_dict()[key], value) for key, value in weights.items())
