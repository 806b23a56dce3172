"""FAN as the backbone of the mask network, which TAO lists and cannot run."""

import pytest
import torch

from fiducial.backbones.names import MAPS, build_pyramid
from fiducial.checkpoints.reading import read
from fiducial.deploy.onnx_predictor import OnnxPredictor
from fiducial.errors import CheckpointError
from mal.config import ARCHITECTURES
from mal.lightning import _averaged
from mal.model import build_labeler
from mal.task import MAL
from mal.training import Objective, ema_update
from mal.weights import load_networks, start_from

TINY = "fan_tiny_8_p4_hybrid"
SMALL_HEADS = {"hidden": 8, "out_dim": 8}


def crops(count=3, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def saved(folder, tree):
    torch.save(tree, folder / "weights.pth")
    return read(folder / "weights.pth")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_built_with_heads_of_its_width(arch):
    with torch.device("meta"):
        network = build_labeler(arch)
    side = 14 * 8 if arch.endswith("/14") else 128
    width = network.mask_head.convs[0].conv.in_channels
    assert width == network.roi_head.mlp1.in_features
    with torch.device("meta"):
        assert network.backbone(torch.zeros(2, 3, side, side)).shape == (2, width, 8, 8)


def test_fan_is_among_them():
    assert set(MAPS) <= set(ARCHITECTURES)


@pytest.mark.parametrize("arch", [TINY, "fan_small_12_p4_hybrid"])
def test_forward(arch):
    network = build_labeler(arch, **SMALL_HEADS).eval()
    with torch.no_grad():
        assert network(crops(), torch.tensor([100.0, 5000.0, 20000.0])).shape == (3, 1, 16, 16)


def test_training_lowers_the_loss_and_reaches_every_trained_parameter():
    torch.manual_seed(0)
    student, teacher = (build_labeler(TINY, **SMALL_HEADS) for _ in range(2))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    images, area = crops(2), torch.tensor([500.0, 5000.0])
    box = torch.zeros(2, 1, 64, 64)
    box[:, :, 16:48, 16:48] = 1
    losses = []
    for _ in range(8):
        with torch.no_grad():
            taught = teacher.eval()(images, area)
        loss = Objective(crf_weight=0.0)(student(images, area), taught, images, box, epoch=1, step=0).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all((p.grad is not None) == p.requires_grad for p in student.parameters())


def test_the_teacher_takes_the_statistics_of_batches_too():
    student, teacher = (build_labeler(TINY, **SMALL_HEADS) for _ in range(2))
    student.train()(crops(), torch.full((3,), 50.0))
    ours, theirs = (net.backbone.blocks[0].mlp.mlp_v.dwconv.bn for net in (student, teacher))
    want = 0.75 * theirs.running_mean + 0.25 * ours.running_mean
    assert not torch.equal(ours.running_mean, theirs.running_mean)
    ema_update(_averaged(teacher), _averaged(student), momentum=0.75)
    assert torch.allclose(theirs.running_mean, want)


@pytest.fixture(scope="module")
def published():
    """As TAO publishes it: the classifier's names, its head among them."""
    torch.manual_seed(1)
    weights = build_pyramid(TINY, image_size=(224, 224)).state_dict()
    norm = {"norm.weight": torch.full((192,), 2.0), "norm.bias": torch.full((192,), 3.0)}
    return weights | norm | {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}


class TestWeights:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda w: w,
            lambda w: {"state_dict": w},
            lambda w: {"state_dict": {f"backbone.{k}": v for k, v in w.items()}},
            lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}, "tao_model": "classification"},
            lambda w: {"model": {f"module.backbone.{k}": v for k, v in w.items()}},
        ],
    )
    def test_go_into_both_networks(self, tmp_path, published, wrap):
        student, teacher = (build_labeler(TINY, **SMALL_HEADS) for _ in range(2))
        start_from(student, teacher, saved(tmp_path, wrap(published)))
        for network in (student, teacher):
            assert torch.equal(network.backbone.blocks[3].attn.kv.weight, published["blocks.3.attn.kv.weight"])
            assert torch.equal(network.backbone.norm.bias, published["norm.bias"])

    def test_of_another_family_are_refused(self, tmp_path, published):
        fan, vit = ([build_labeler(arch, **SMALL_HEADS) for _ in range(2)] for arch in (TINY, "vit-deit-tiny/16"))
        with pytest.raises(CheckpointError, match=r"looks like FAN, the model is ViT"):
            start_from(*vit, saved(tmp_path, {"state_dict": published}))
        with pytest.raises(CheckpointError, match=r"looks like ViT.*, the model is FAN"):
            start_from(*fan, saved(tmp_path, {"model": vit[0].backbone.state_dict()}))

    def test_of_another_size_are_refused(self, tmp_path, published):
        networks = [build_labeler("fan_small_12_p4_hybrid", **SMALL_HEADS) for _ in range(2)]
        with pytest.raises(CheckpointError, match="353 of 413 tensors match"):
            start_from(*networks, saved(tmp_path, published))

    def test_a_backbone_is_no_checkpoint(self, tmp_path, published):
        networks = [build_labeler(TINY, **SMALL_HEADS) for _ in range(2)]
        with pytest.raises(CheckpointError, match="FAN alone, no MAL checkpoint"):
            load_networks(*networks, saved(tmp_path, published))


@pytest.fixture(scope="module")
def trained(make_tree, tmp_path_factory):
    """The spec's tree of a training of one epoch, and its results folder."""
    import mal

    folder = tmp_path_factory.mktemp("fan")
    tree = make_tree(folder, model__arch=TINY, train__num_epochs=1, model__frozen_stages=[0, 1])
    mal.run("train", tree)
    return tree, folder


def test_what_is_trained_is_evaluated_exported_and_gives_the_same(trained, tmp_path):
    import mal

    tree, folder = trained
    target = tmp_path / "fan.onnx"
    assert mal.run("evaluate", tree).kpis["mIoU"] > 0
    mal.run("export", tree, f"export.onnx_file={target}", "export.batch_size=-1")
    labeler = mal.load(folder)
    runtime = MAL.runtime(labeler.spec)
    batch = {"image": crops(3, 32), "boxmask": torch.ones(3, 1, 32, 32), "area": torch.tensor([100.0, 5000.0, 2e4])}
    ours = labeler.network.eval().cpu()(*batch.values())
    theirs = OnnxPredictor(target, runtime).predict(batch)["prob"]
    assert torch.allclose(ours, torch.as_tensor(theirs), atol=1e-4)


def test_a_crop_that_is_no_multiple_of_the_stride(make_tree, tmp_path):
    import mal
    from fiducial.errors import UserError

    with pytest.raises(UserError, match=r"500 is no multiple of the patch 16 of fan_tiny.*set 496 or 512"):
        mal.run("train", make_tree(tmp_path, model__arch=TINY, dataset__crop_size=500))
