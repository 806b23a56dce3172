"""ResNets against torchvision's, and their own promises."""

import pytest
import torch
import torchvision
from torch import nn

from fiducial.backbones import resnet
from fiducial.backbones.resnet import ResNetEmbedding, build_resnet

SMALL = (1, 1, 2, 1)


def small(**options):
    torch.manual_seed(0)
    network = ResNetEmbedding(SMALL, **options)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # the last of a block begins at 0 and would hide the block
    return network


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_torchvision_names_and_computes_the_same(images):
    ours = small().eval()
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(SMALL)).eval()
    theirs.fc = nn.Identity()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "parameters"), [("resnet_50", 23_508_032), ("resnet_101", 42_500_160)])
def test_published_sizes(name, parameters):
    with torch.device("meta"):
        network = build_resnet(name)
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 2048)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (7, 7)])
def test_any_size(size):
    assert small().eval()(torch.zeros(1, 3, *size)).shape == (1, 2048)


def test_grey_images_are_refused():
    with pytest.raises(ValueError, match="images must be"):
        small()(torch.zeros(1, 1, 64, 64))


def test_unknown_name():
    with pytest.raises(ValueError, match="resnet_18"):
        build_resnet("resnet_18")


def test_computing_activations_again_changes_neither_gradients_nor_statistics(images):
    kept, again = small().train(), small(activation_checkpointing=True).train()
    for network in (kept, again):
        network(images).square().sum().backward()
    for (name, ours), (_, theirs) in zip(kept.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), (_, theirs) in zip(kept.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("way", ["eval", "train"])
def test_the_layout_of_large_batches_changes_rounding_alone(way, monkeypatch):
    network, x = small().double(), torch.randn(4, 3, 64, 64, dtype=torch.float64)
    getattr(network, way)()

    def run():
        network.zero_grad()
        out = network(x)
        out.square().sum().backward()
        return out.detach(), *(p.grad.clone() for p in network.parameters())

    seen, before = [], run()
    network.layer4[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    monkeypatch.setattr(resnet, "LARGE", 0)
    for found, wanted in zip(run(), before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_graph_with_an_open_batch_has_no_layout_of_its_own(monkeypatch):
    monkeypatch.setattr(resnet, "LARGE", 2 * 3 * 32 * 32)  # in the middle of the sizes that it is for
    network = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(3, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-5)
