"""The graph of every task, of a network that has each kind of layer once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from changenet.classify.model import build_classifier
from changenet.segment.model import build_segmenter
from fiducial.backbones.dinov2 import DinoV2Pyramid, DinoV2Shape
from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.prediction import Graph, GraphInput
from mal.model import build_labeler
from mal.predictor import BoxLabeler
from mlrecog.model import build_recognizer

SIDE = 64
_FAN = "fan_tiny_8_p4_hybrid"
_PICTURE = (3, SIDE, SIDE)


def _pair(names, keys, outputs, axis="batch"):
    inputs = {name: GraphInput(key, _PICTURE) for name, key in zip(names, keys, strict=True)}
    return Graph(inputs, outputs, axis)


_CLASSIFY = _pair(("input_1", "input_2"), ("test", "golden"), ("output",))
_SEGMENT = _pair(("input0", "input1"), "AB", ("output0", "output1", "output2", "output3", "output_final"), "batch_size")
_MAL = {"image": _PICTURE, "boxmask": (1, SIDE, SIDE), "area": ()}


def _short(network: nn.Module) -> nn.Module:
    """A network whose blocks, which are all alike, are one."""
    for part in network.modules():
        blocks = getattr(part, "blocks", None)
        if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) > 1:
            part.blocks = blocks[:1]
            if hasattr(part, "tap"):
                part.tap = 0
    return network


class _OneStage(DinoV2Pyramid):
    """A ViT adapter, whose four stages are alike, with the first one."""

    def __init__(self) -> None:
        super().__init__(DinoV2Shape(dim=32, depth=4, heads=2, hidden=48), grid=4, heads=4, planes=8)
        self.interactions = self.interactions[:1]

    def _join(self, c1, prior_BLC, seen):
        return super()._join(c1, prior_BLC, seen * 4)


GRAPHS = {
    "classify": (
        lambda: _short(
            build_classifier(backbone=_FAN, difference_module="learnable", image_size=(SIDE, SIDE), embed_dim=32)
        ),
        _CLASSIFY,
    ),
    "classify, euclidean": (
        lambda: _short(build_classifier(backbone=_FAN, difference_module="euclidean", image_size=(SIDE, SIDE))),
        _CLASSIFY,
    ),
    "segment": (lambda: _short(build_segmenter(backbone=_FAN, image_size=(SIDE, SIDE), embed_dim=32)), _SEGMENT),
    "adapter": (_OneStage, Graph({"x": GraphInput("x", _PICTURE)}, ("p0", "p1", "p2", "p3"), "batch")),
    "mal": (
        lambda: BoxLabeler([_short(build_labeler("vit-deit-tiny/16", hidden=8, out_dim=8))]),
        Graph({name: GraphInput(name, shape) for name, shape in _MAL.items()}, ("prob",), "batch"),
    ),
    "mlrecog": (
        lambda: _short(build_recognizer("fan_tiny", feat_dim=8, image_size=(SIDE, SIDE))),
        Graph({"input": GraphInput("image", _PICTURE)}, ("fc_pred",), "batch"),
    ),
}


def written(name: str, path: Path, *, opset: int = 17, batch_size: int = -1) -> tuple[Path, Graph]:
    """The exported file of one task's network, and its interface."""
    make, graph = GRAPHS[name]
    torch.manual_seed(0)
    network = make().eval()
    export_onnx(network, path, graph, ExportSettings(opset, batch_size), card=ModelCard(task=name), samples=[])
    return path, graph
