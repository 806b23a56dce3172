"""Graphs that take pixels: images as they are in memory, whose normalisation is a part of the graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fiducial.data.normalization import Normalization
from fiducial.deploy.card import ModelCard
from fiducial.errors import SpecError
from fiducial.prediction import Graph, GraphInput
from fiducial.run.console import LOGGER

__all__ = ["PixelInputs", "PixelNetwork", "taking_pixels", "with_preprocessing"]

_LEAST = 0.02
"""Of a pixel's 255 steps, what float32 leaves of a whole number; more is no 8-bit picture."""


def taking_pixels(graph: Graph, names: Collection[str]) -> Graph:
    """The graph with uint8 ``(..., H, W, 3)`` in place of the images of these names."""
    return replace(graph, inputs={k: _pixels(item) if k in names else item for k, item in graph.inputs.items()})


def with_preprocessing(
    network: nn.Module, graph: Graph, samples: Sequence[Mapping[str, Tensor]], card: ModelCard
) -> tuple[nn.Module, Graph, list[Mapping[str, Tensor]]]:
    """A network, its graph and samples of its inputs, as those of one that takes pixels.

    Raises: SpecError when none of its inputs is an image.
    """
    names = [name for name, item in graph.inputs.items() if item.image]
    if not names:
        raise SpecError("export.preprocessing", "the network takes no images", "set it to false")
    normalization = Normalization.of(card)
    as_pixels = PixelInputs(names, normalization)
    whole = PixelNetwork(network, graph, normalization).eval()
    return whole, taking_pixels(graph, names), [as_pixels(sample) for sample in samples]


def _pixels(item: GraphInput) -> GraphInput:
    *several, channels, height, width = item.shape
    return replace(item, shape=(*several, height, width, channels), dtype="uint8")


class PixelNetwork(nn.Module):
    """A network whose images are uint8 ``(B, ..., H, W, 3)``, RGB; the other inputs are as they were."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, graph: Graph, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self._images = [item.image for item in graph.inputs.values()]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", mean / std)

    def forward(self, *inputs: Tensor) -> Tensor | Sequence[Tensor]:
        given: Tensor | Sequence[Tensor] = self.network(
            *(self._normalised(x) if image else x for x, image in zip(inputs, self._images, strict=True))
        )
        return given

    def _normalised(self, x: Tensor) -> Tensor:
        first = x.dim() - 3
        axes = [*range(first), first + 2, first, first + 1]  # spelled out: the older exporter writes movedim wrongly
        return x.float().permute(axes) * self.scale - self.offset


class PixelInputs:
    """Turns normalised images into the pixels that a graph takes in their place, under these names."""

    def __init__(self, names: Sequence[str], normalization: Normalization) -> None:
        self.names, self._normalization, self._told = frozenset(names), normalization, False

    @classmethod
    def of(cls, graph: Graph, card: ModelCard) -> PixelInputs | None:
        """What a model with this card asks for; None where it takes images as they are."""
        images = {name for name, item in graph.inputs.items() if item.image}
        names = [name for name in images & card.inputs.keys() if card.inputs[name].dtype == "uint8"]
        return cls(names, Normalization.of(card)) if names else None

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``feeds`` with pixels in place of images; they are the picture's own where that has 8 bits."""
        return {name: self._pixels(value) if name in self.names else value for name, value in feeds.items()}

    def _pixels(self, x: Tensor) -> Tensor:
        exact = self._normalization.to_pixels(x)
        pixels = exact.round().clamp(0, 255)
        if not self._told and (pixels - exact).abs().max() > _LEAST:
            self._told = True
            LOGGER.warning("the model takes pixels of 8 bits: finer images, or otherwise normalised ones, are rounded")
        return pixels.to(torch.uint8).movedim(-3, -1).contiguous()
