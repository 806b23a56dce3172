"""Galleries of drawn embeddings, for the tests."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from fiducial.data.normalization import Normalization
from fiducial.deploy.card import ModelCard
from fiducial.deploy.onnx import ExportSettings, export_onnx
from fiducial.prediction import Graph, GraphInput
from fiducial.task import TaskRuntime
from mlrecog.config import ExperimentSpec
from mlrecog.gallery import GalleryCard, ModelFacts, Part
from mlrecog.gallery_table import Entry
from mlrecog.predictor import EMBEDDING, Embedder
from mlrecog.task import RecogTask

MODEL = ModelFacts("ab" * 32, (64, 48), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), backbone="resnet_50", file="best.pth")
CARD = GalleryCard(MODEL, dim=8, threshold=0.4)


def embeddings(count, *, dim=8, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def part(count, *, dim=8, seed=0, classes=3, first=0):
    """Pictures ``<seed>/<number>.png`` of the classes ``cola 0``, ``cola 1``, …"""
    numbers = range(first, first + count)
    entries = [Entry(f"cola {n % classes}", f"/shop/{seed}/{n}.png", f"{seed}-{n}") for n in numbers]
    return Part(entries, embeddings(count, dim=dim, seed=seed))


SIZE = (32, 24)


class TinyRuntime(TaskRuntime):
    """As the network's own, with a network that is small enough for tests."""

    def __init__(self, spec):
        self.spec, self.size = spec, (spec.model.input_height, spec.model.input_width)
        self.normalize = Normalization(tuple(spec.dataset.pixel_mean), tuple(spec.dataset.pixel_std))

    def network(self):
        return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * self.size[0] * self.size[1] // 64, 8))

    def torch_predictor(self, checkpoint):
        network = self.network()
        network.load_state_dict(checkpoint.state_dict)
        self.adopt(ModelCard.of_checkpoint(checkpoint))
        return Embedder(network)

    def adopt(self, card):
        if card.mean:
            self.normalize = Normalization.of(card)

    def graph(self):
        return Graph(inputs={"input": GraphInput("image", (3, *self.size))}, outputs=(EMBEDDING,), batch_axis="batch")

    def card(self):
        mean, std = self.normalize.mean, self.normalize.std
        return ModelCard(network="ml_recog", task="mlrecog", backbone="tiny", mean=mean, std=std)

    module = datamodule = loaders = evaluator = None


class TinyTask(RecogTask):
    def runtime(self, spec):
        return TinyRuntime(spec)


def save_model(path, *, seed=0, mean=(0.5, 0.5, 0.5)):
    """A checkpoint of the tiny network, and beside it the same as ONNX."""
    spec = ExperimentSpec.model_validate({"model": {"input_height": SIZE[0], "input_width": SIZE[1]}})
    runtime = TinyRuntime(spec)
    runtime.normalize = Normalization(mean, (0.25, 0.25, 0.25))
    torch.manual_seed(seed)
    network = runtime.network()
    torch.save({"state_dict": network.state_dict(), "fiducial": runtime.card().stamped().plain()}, path)
    settings = ExportSettings(opset=17, batch_size=-1)
    export_onnx(network, path.with_suffix(".onnx"), runtime.graph(), settings, card=runtime.card(), samples=())
    return str(path)


def make_products(folder, *, classes=3, each=4, seed=0):
    """Class folders of pictures, each class in a colour of its own."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(30, 220, (26, 4, 4, 3))
    for number in range(classes):
        name = f"cola {chr(97 + number)}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = colours[number].repeat(10, 0).repeat(10, 1) + rng.integers(-12, 12, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{seed}-{i}.png")
    return str(folder)
