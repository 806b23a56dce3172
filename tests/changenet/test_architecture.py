"""Every backbone with every head and flag: a network's own tensors never contradict the spec that it was made with."""

import dataclasses
from pathlib import Path

import pytest
import torch

from changenet.architecture import backbone_facts, fitting_backbones
from changenet.classify.runtime import ClassifyRuntime
from changenet.classify.weights import differences as classify_differences
from changenet.config import ExperimentSpec
from changenet.segment.runtime import SegmentRuntime
from changenet.segment.weights import differences as segment_differences
from fiducial.backbones import dinov2, names, radio
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.errors import CheckpointError
from fiducial.spec.knob import plain

FAN, RADIO, RADIO_3, NVDINO = (
    "fan_tiny_8_p4_hybrid",
    "c_radio_v2_vit_base_patch16_224",
    "c_radio_v3_vit_base_patch16_reg4_dinov2",
    "vit_large_nvdinov2",
)
HEADS = ("learnable", "euclidean", "segment")
WIDTH, DEPTH = 32, 4


def spec_of(backbone, head, flag, **data):
    """``head``: the difference module of classify, or ``segment``."""
    is_classify = head != "segment"
    side = 224 if head == "euclidean" and backbone == NVDINO else 64
    size = {"image_width": side, "image_height": side} if is_classify else {"img_size": side}
    model = {
        "backbone": {"type": backbone},
        "decode_head": {"use_summary_token": flag, "decoder_params": {"embed_dim": 8}},
        "classify": {"difference_module": head if is_classify else "learnable", "embed_dec": 4},
    }
    task = "classify" if is_classify else "segment"
    return ExperimentSpec.model_validate({"task": task, "model": model, "dataset": {task: {**size, **data}}})


def runtime_of(spec):
    return ClassifyRuntime(spec) if spec.task == "classify" else SegmentRuntime(spec)


def differences(spec, tensors, trained=None):
    if spec.task == "segment":
        return list(segment_differences(spec, tensors))
    return list(classify_differences(spec, tensors, trained))


def tensors_of(spec):
    with torch.device("meta"):
        network = runtime_of(spec).network()
    return {f"model.{key}": tensor for key, tensor in network.state_dict().items()}


@pytest.fixture
def tiny(monkeypatch):
    """The ViTs with four blocks of 32 channels, under their own names."""
    monkeypatch.setattr(radio, "GRID", 6)
    monkeypatch.setattr(dinov2, "EMBEDDING_GRID", 6)
    monkeypatch.setitem(dinov2.VARIANTS, NVDINO, dinov2.DinoV2Shape(WIDTH, DEPTH, 4, 48))
    for name in (RADIO, RADIO_3):
        shape = dataclasses.replace(radio.VARIANTS[name], dim=WIDTH, depth=DEPTH, heads=4)
        monkeypatch.setitem(radio.VARIANTS, name, shape)
    for name in (RADIO, RADIO_3, NVDINO):
        info = names.BACKBONES[name]
        summary = info.embedding_dim // info.channels[0]
        small = dataclasses.replace(
            info, channels=(WIDTH,) * 4, depth=DEPTH, embedding_dim=summary * WIDTH, hidden=info.hidden and 48
        )
        monkeypatch.setitem(names.BACKBONES, name, small)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", [FAN, RADIO, RADIO_3, NVDINO])
def test_saved_and_loaded(tmp_path, backbone, head, flag):
    torch.manual_seed(0)
    spec = spec_of(backbone, head, flag)
    runtime = runtime_of(spec)
    network = runtime.network()
    says = {"hyper_parameters": plain(spec), "fiducial": runtime.card().plain()}
    weights = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
    again = runtime.network()
    for of in ({}, says):  # a file of TAO, and one of ours
        torch.save({"state_dict": weights, "pytorch-lightning_version": "2.6.1", **of}, tmp_path / "m.pth")
        report = runtime.load_weights(again, read(tmp_path / "m.pth"))
        assert (report.matched, report.missing, report.unexpected) == (report.wanted, (), ())
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in network.state_dict().items())
    assert fitting_backbones({key: tuple(tensor.shape) for key, tensor in weights.items()}) == (backbone,)


@pytest.mark.parametrize("head", ["learnable", "segment"])
@pytest.mark.parametrize("name", [RADIO, RADIO_3, "c_radio_p1_vit_huge_patch16_224_mlpnorm"])
def test_the_flag_of_a_pyramid_counts(name, head):
    tensors = tensors_of(spec_of(name, head, True))
    (problem,) = differences(spec_of(name, head, False), tensors)
    assert (problem.where, problem.fix) == (
        "model.decode_head.use_summary_token",
        "set model.decode_head.use_summary_token=True",
    )


@pytest.mark.parametrize(("name", "head"), [(FAN, "learnable"), (NVDINO, "segment"), (RADIO, "euclidean")])
def test_a_flag_without_a_place_does_not(name, head):
    tensors = tensors_of(spec_of(name, head, True))
    assert differences(spec_of(name, head, False), tensors) == []


@pytest.mark.parametrize("name", names.BACKBONES)
def test_every_backbone_fits_itself(name):
    tensors = tensors_of(spec_of(name, "euclidean", True))
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    fitting = fitting_backbones(shapes)
    assert name in fitting
    alone = "huge" not in name or "dinov3" in name
    assert len(fitting) == (1 if alone else 3 if "mlpnorm" in name else 2)
    assert differences(spec_of(name, "euclidean", False), tensors) == []
    assert backbone_facts(shapes) == {"model.backbone.type": fitting[0]}


@pytest.mark.parametrize("name", [FAN, RADIO_3, NVDINO])
def test_another_backbone_is_named(name):
    tensors = tensors_of(spec_of(name, "segment", True))
    found = {problem.where: problem.fix for problem in differences(spec_of(RADIO, "segment", True), tensors)}
    assert found["model.backbone.type"] == f"set model.backbone.type={name}"


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 3},
        {"grid_map": {"x": 1, "y": 2}},
        {"concat_type": "grid"},
    ],
)
def test_data_that_a_euclidean_network_never_sees_is_free(change):
    spec = spec_of(RADIO, "euclidean", True)
    other = spec_of(RADIO, "euclidean", True, **change)
    assert differences(other, tensors_of(spec), plain(spec)) == []


def test_data_that_it_does_see_is_not():
    spec = spec_of(RADIO, "euclidean", True)
    other = spec_of(RADIO, "euclidean", True, num_input=2)
    (problem,) = differences(other, tensors_of(spec), plain(spec))
    assert problem.where == "dataset.classify.num_input"


def test_another_depth_is_another_backbone():
    tensors = tensors_of(spec_of("c_radio_v2_vit_large_patch16_224", "euclidean", True))
    (problem,) = differences(spec_of(RADIO, "euclidean", True), tensors)
    assert problem.fix == "set model.backbone.type=c_radio_v2_vit_large_patch16_224"


LOOKED_AT = (
    *("linear_fuse.0.weight", "classifier.0.weight", "classifier.6.weight", "fc1.6.weight", "conv2d.weight"),
    *("blocks.0.norm1.weight", "blocks.0.mlp.fc1.weight", "backbone.pos_embed", "patch_embed.proj.weight"),
)
SHAPES = [(), (3,), (0, 0), (2, 2), (1, 1, 1, 1), (0, 0, 0, 0), (2, 3, 4, 5, 6)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", [FAN, NVDINO])
def test_tensors_of_any_shape_are_told_of(head, backbone):
    """Every layer whose shape is looked at, in shapes that no network has: problems, and no other error."""
    spec = spec_of(backbone, head, True)
    runtime = runtime_of(spec)
    with torch.device("meta"):
        network = runtime.network()
    tensors = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
    for key in (key for key in tensors if key.endswith(LOOKED_AT)):
        for shape in SHAPES:
            changed = {**tensors, key: torch.empty(shape, device="meta")}
            if changed[key].shape == tensors[key].shape:
                continue
            differences(spec, changed)
            with pytest.raises(CheckpointError):
                runtime.load_weights(network, Checkpoint(Path("m.pth"), "lightning", changed, {}, None))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoints_of_wrapped_networks(tmp_path, head, prefix):
    spec = spec_of(FAN, head, False)
    runtime = runtime_of(spec)
    network = runtime.network()
    weights = {f"{prefix}model.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "pytorch-lightning_version": "2.6.1"}, tmp_path / "m.pth")
    report = runtime.load_weights(runtime.network(), read(tmp_path / "m.pth"))
    assert report.matched == report.wanted
