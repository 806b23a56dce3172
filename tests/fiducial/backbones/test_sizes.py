"""Which inputs backbones refuse, and how they say so; every ``forward`` is documented."""

import importlib
import inspect
import warnings

import pytest
import torch
from torch import nn

from fiducial.backbones.dinov2 import DinoV2Embedding, DinoV2Pyramid, DinoV2Shape
from fiducial.backbones.fan import build
from fiducial.backbones.radio import RadioEmbedding, RadioPyramid, RadioShape, RadioViT
from fiducial.backbones.sizes import check_images, shape_of

MODULES = (
    *(f"fiducial.backbones.{name}" for name in ("deformable", "dinov2", "fan", "radio", "vit", "vit_adapter")),
    *("changenet.difference", "changenet.classify.model", "changenet.segment.model"),
)
ADAPTER = {"heads": 4, "planes": 8}
DINO = DinoV2Shape(32, 4, 4, 48)


def radio():
    return RadioViT(RadioShape(32, 4, 4, 4, 4, 3), grid=12)


BACKBONES = {
    "fan pyramid": (16, lambda: build("fan_tiny_8_p4_hybrid", "pyramid", image_size=(32, 32))),
    "fan embedding": (16, lambda: build("fan_tiny_8_p4_hybrid", "embedding", image_size=(32, 32))),
    "fan downsampled": (
        32,
        lambda: build("fan_tiny_8_p4_hybrid", "pyramid", image_size=(32, 32), feat_downsample=True),
    ),
    "radio": (16, radio),
    "radio embedding": (16, lambda: RadioEmbedding(radio())),
    "radio pyramid": (32, lambda: RadioPyramid(radio(), **ADAPTER)),
    "dino embedding": (14, lambda: DinoV2Embedding(DINO, grid=4)),
    "dino pyramid": (32, lambda: DinoV2Pyramid(DINO, grid=4, **ADAPTER)),
}


def forwards():
    for module in map(importlib.import_module, MODULES):
        own = [kind for kind in vars(module).values() if getattr(kind, "__module__", "") == module.__name__]
        for kind in filter(inspect.isclass, own):
            if issubclass(kind, nn.Module) and "forward" in vars(kind) and not kind.__name__.startswith("_"):
                yield pytest.param(kind.forward, id=f"{module.__name__}.{kind.__name__}")


@pytest.mark.parametrize("forward", list(forwards()))
def test_every_public_forward_says_its_shapes(forward):
    assert "``(" in forward.__doc__


@pytest.mark.parametrize("name", BACKBONES)
def test_other_sizes_are_refused_by_their_numbers(name):
    multiple, make = BACKBONES[name]
    network = make().eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, multiple, 2 * multiple))
        with pytest.raises(ValueError, match=rf"multiples of {multiple} pixels, found {multiple}×{2 * multiple + 8}"):
            network(torch.zeros(1, 3, multiple, 2 * multiple + 8))
        with pytest.raises(ValueError, match=rf"\(B, 3, H, W\), found shape \(1, 4, {multiple}, {multiple}\)"):
            network(torch.zeros(1, 4, multiple, multiple))
        with pytest.raises(ValueError, match=rf"found shape \(3, {multiple}, {multiple}\)"):
            network(torch.zeros(3, multiple, multiple))


def test_height_and_width():
    assert check_images(torch.zeros(2, 3, 32, 48), multiple=16) == (32, 48)


def test_a_traced_graph_has_no_trace_of_the_check():
    class Checked(nn.Module):
        def forward(self, x):
            check_images(x, multiple=2)
            return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says that sizes were compared
        traced = torch.jit.trace(Checked(), torch.zeros(1, 3, 4, 4))
    assert {node.kind() for node in traced.inlined_graph.nodes()} == {"prim::Constant", "aten::add"}
    assert shape_of(traced(torch.zeros(5, 3, 8, 4))) == (5, 3, 8, 4)


def test_a_compiled_graph_takes_any_size_that_fits():
    network = build("fan_tiny_8_p4_hybrid", "pyramid", image_size=(32, 32)).patch_embed.backbone.eval()

    def run(images):
        check_images(images, multiple=16)
        return network.stem(images)

    torch._dynamo.reset()
    compiled, counter = torch.compile(run, fullgraph=True, backend="eager", dynamic=True), torch._dynamo.utils.counters
    counter.clear()
    for batch, side in ((2, 32), (3, 48), (4, 80)):
        images = torch.rand(batch, 3, side, side + 16)
        torch.testing.assert_close(compiled(images), run(images))
    assert counter["stats"]["unique_graphs"] == 1
