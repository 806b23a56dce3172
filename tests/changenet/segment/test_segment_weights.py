"""Checkpoints against specs."""

import pytest
import torch

from changenet.segment.runtime import SegmentRuntime
from changenet.segment.weights import architecture_of, differences, resized_positions
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError


@pytest.fixture(scope="module")
def weights():
    from changenet.segment.model import build_segmenter

    torch.manual_seed(0)
    model = build_segmenter(backbone="fan_tiny_8_p4_hybrid", image_size=(32, 32), embed_dim=8)
    return {f"model.{key}": value for key, value in model.state_dict().items()}


def checkpoint(weights, tmp_path):
    return Checkpoint(tmp_path / "model.pth", "lightning", weights, {}, None)


def test_what_tensors_say(weights):
    assert architecture_of(weights) == {
        "model.decode_head.decoder_params.embed_dim": 8,
        "dataset.segment.num_classes": 2,
        "model.backbone.type": "fan_tiny_8_p4_hybrid",
    }


def test_every_difference_is_named(weights, make_spec):
    spec = make_spec(
        model__backbone__type="fan_small_12_p4_hybrid",
        model__decode_head__decoder_params__embed_dim=256,
        dataset__segment__num_classes=3,
    )
    found = {problem.where: problem.fix for problem in differences(spec, weights)}
    assert found == {
        "model.decode_head.decoder_params.embed_dim": "set model.decode_head.decoder_params.embed_dim=8",
        "dataset.segment.num_classes": "set dataset.segment.num_classes=2",
        "model.backbone.type": "set model.backbone.type=fan_tiny_8_p4_hybrid",
    }


def test_a_checkpoint_of_the_other_task(make_spec):
    (problem,) = differences(make_spec(), {"model.fc1.0.weight": torch.zeros(2, 2)})
    assert "task classify" in problem.found


def test_loading_bare_and_wrapped(weights, make_spec, tmp_path):
    runtime = SegmentRuntime(make_spec())
    for names in (weights, {key.removeprefix("model."): value for key, value in weights.items()}):
        network = runtime.network()
        assert runtime.load_weights(network, checkpoint(names, tmp_path)).matched == len(weights)
        key = "decoder.change_probability.conv2d.weight"
        assert torch.equal(network.state_dict()[key], weights[f"model.{key}"])


def test_every_tensor_is_needed(weights, make_spec, tmp_path):
    runtime = SegmentRuntime(make_spec())
    short = {key: value for key, value in weights.items() if key != "model.decoder.linear_fuse.1.bias"}
    with pytest.raises(CheckpointError, match=r"linear_fuse\.1\.bias"):
        runtime.load_weights(runtime.network(), checkpoint(short, tmp_path))


def test_positions_of_another_image_size():
    table = torch.randn(1, 1 + 16, 6)
    larger = resized_positions("model.backbone.pos_embed", table, (1, 1 + 36, 6))
    assert larger.shape == (1, 37, 6)
    assert torch.equal(larger[:, 0], table[:, 0])
    assert resized_positions("model.backbone.pos_embed", table, (1, 37, 8)) is None
    assert resized_positions("model.backbone.cls_token", table, (1, 37, 6)) is None
