"""Networks, batches and both ways of running them: what ``steps.py`` measures.

A case gives, for each way, a call that infers and one that trains; both ways share weights and batch.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from plain import (
    PlainClassifier,
    PlainDistance,
    PlainSegmenter,
    plain_functions,
    trained_looking,
    unfolded_field,
)
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim import Optimizer

from changenet.classify.losses import contrastive_loss
from changenet.classify.model import EuclideanClassifier, build_classifier
from changenet.segment.losses import cross_entropy, multi_scale
from changenet.segment.model import build_segmenter
from fiducial.deploy.compiled import compile_calls
from fiducial.training.optim import build_optimizer
from mal.model import build_labeler
from mal.training import Objective, ema_update
from mlrecog.losses import TripletObjective
from mlrecog.model import build_recognizer
from mlrecog.optimizers import PartOptimizer

__all__ = ["CASES", "QUICK", "Case"]

Way = str
"""``plain``: the straightforward one. ``ours``, ``linears``: this project's, without what is timed; ``compiled``;
``checkpointed``: with ``activation_checkpointing``."""


class Case:
    """A network with numbers in it and a batch. A subclass says what is computed in both ways."""

    compiled_call = "forward"

    def __init__(self, network: nn.Module) -> None:
        self.network = trained_looking(network)

    def inference(self, way: Way) -> Callable[[], Tensor]:
        """The result of the batch, without gradients."""
        self.network.eval()
        if way == "compiled":
            compile_calls(self.network, (self.compiled_call,))

        def run() -> Tensor:
            with torch.no_grad() if way == "plain" else torch.inference_mode():
                return self.infer(way)

        return run

    def training(self, way: Way) -> Callable[[], Tensor]:
        """A step that draws the same random numbers, and finds the same weights, every time; its loss."""
        self.network.train()
        if way == "checkpointed":
            for module in self.network.modules():
                if hasattr(module, "activation_checkpointing"):
                    module.activation_checkpointing = True
                elif isinstance(module, VisionTransformer):
                    module.set_grad_checkpointing()
        optimizers = list(self.optimizers(way))

        def run() -> Tensor:
            torch.manual_seed(0)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = self.loss(way)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            self.after(way)
            return loss.detach()

        return run

    def optimizers(self, way: Way) -> Iterable[Optimizer]:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if way == "plain":
            yield torch.optim.AdamW(trained, lr=0.0, weight_decay=0.01)
        else:
            yield build_optimizer("adamw", trained, lr=0.0, weight_decay=0.01)

    @abstractmethod
    def infer(self, way: Way) -> Tensor: ...

    @abstractmethod
    def loss(self, way: Way) -> Tensor: ...

    def after(self, way: Way) -> None:
        """What follows the optimizers' step."""


class Classify(Case):
    """Pairs of composed images, half of them defects."""

    def __init__(self, backbone: str, size: tuple[int, int], batch: int, difference: Any = "learnable") -> None:
        torch.manual_seed(0)
        super().__init__(build_classifier(backbone=backbone, difference_module=difference, image_size=size))
        kind = PlainDistance if isinstance(self.network, EuclideanClassifier) else PlainClassifier
        self.plain = kind(self.network)
        self.test, self.golden = torch.randn(2, batch, 3, *size)
        self.label = torch.arange(batch) % 2

    def infer(self, way: Way) -> Tensor:
        result: Tensor = (self.plain if way == "plain" else self.network)(self.test, self.golden)
        return result

    def loss(self, way: Way) -> Tensor:
        output = self.infer(way)
        return contrastive_loss(output, self.label) if output.ndim == 1 else F.cross_entropy(output, self.label)


class Segment(Case):
    """Pairs of images, every pixel changed or not; the loss is that of all scales."""

    weights = (0.5, 0.5, 0.5, 0.8, 1.0)
    compiled_call = "final_at_once"

    def __init__(self, backbone: str, side: int, batch: int, embed_dim: int = 256) -> None:
        torch.manual_seed(0)
        super().__init__(build_segmenter(backbone=backbone, image_size=(side, side), embed_dim=embed_dim))
        self.plain = PlainSegmenter(self.network)
        self.before, self.later = torch.randn(2, batch, 3, side, side)
        self.label = torch.randint(0, 2, (batch, side, side))

    def infer(self, way: Way) -> Tensor:
        network: Any = self.network
        result: Tensor = (
            self.plain(self.before, self.later)[-1] if way == "plain" else network.final(self.before, self.later)
        )
        return result

    def loss(self, way: Way) -> Tensor:
        network: Any = self.network
        predict = self.plain if way == "plain" else network.predictions
        return multi_scale(predict(self.before, self.later), self.label, self.weights, cross_entropy)


class Mal(Case):
    """Crops around boxes; in training a teacher, whose graph the straightforward way records, too."""

    def __init__(self, arch: str, crop: int, batch: int) -> None:
        torch.manual_seed(0)
        super().__init__(build_labeler(arch))
        self.teacher = copy.deepcopy(self.network)
        self.image = torch.randn(batch, 3, crop, crop)
        edge = crop // 8
        self.box = F.pad(torch.ones(batch, 1, crop - 2 * edge, crop - 2 * edge), (edge,) * 4)
        self.area = torch.full((batch,), 20000.0)
        self.objective = Objective()

    def infer(self, way: Way) -> Tensor:
        with _functions(way):
            result: Tensor = self.network(self.image, self.area)
        return result

    def loss(self, way: Way) -> Tensor:
        field = partial(unfolded_field, self.objective.mean_field)
        objective = Objective(mean_field=cast(Any, field)) if way == "plain" else self.objective
        with _functions(way):
            student = self.network(self.image, self.area)
            with nullcontext() if way == "plain" else torch.no_grad():
                teacher = self.teacher(self.image, self.area)
            return objective(student, teacher, self.image, self.box, epoch=1, step=0).total

    @torch.no_grad()
    def after(self, way: Way) -> None:
        pairs = list(self.teacher.parameters()), list(self.network.parameters())
        if way != "plain":
            ema_update(*pairs, momentum=0.996)
            return
        for kept, trained in zip(*pairs, strict=True):
            kept.data = kept.data * 0.996 + trained.data * 0.004


class MlRecog(Case):
    """Pictures, two of every product."""

    def __init__(self, side: int, batch: int) -> None:
        import torchvision  # type: ignore[import-untyped]

        torch.manual_seed(0)
        super().__init__(build_recognizer("resnet_50", feat_dim=256, image_size=(side, side)))
        network: Any = self.network
        trunk = torchvision.models.resnet50()
        trunk.fc = nn.Identity()
        self.plain = nn.Sequential(trunk, copy.deepcopy(network.embedder))
        trunk.load_state_dict(network.trunk.state_dict())
        trained_looking(self.plain)
        self.image, self.label = torch.randn(batch, 3, side, side), torch.arange(batch) // 2
        self.objective = TripletObjective()
        self.miner, self.triplets = MultiSimilarityMiner(0.1), TripletMarginLoss(0.3, smooth_loss=True)

    def inference(self, way: Way) -> Callable[[], Tensor]:
        self.plain.eval()
        return super().inference(way)

    def optimizers(self, way: Way) -> Iterable[Optimizer]:
        network: Any = self.network
        if way == "plain":
            yield from (torch.optim.Adam(part.parameters(), lr=0.0, weight_decay=5e-4) for part in self.plain)
        else:
            yield from (PartOptimizer(base_lr=0.0).build(part) for part in (network.trunk, network.embedder))

    def infer(self, way: Way) -> Tensor:
        result: Tensor = (self.plain if way == "plain" else self.network)(self.image)
        return result

    def loss(self, way: Way) -> Tensor:
        found = self.infer(way)
        if way == "plain":
            loss: Tensor = self.triplets(found, self.label, self.miner(found, self.label))
            return loss
        return self.objective(found, self.label).loss


def _functions(way: Way) -> AbstractContextManager[None]:
    return plain_functions() if way == "plain" else nullcontext()


RADIO = "c_radio_v2_vit_base_patch16_224"
CASES: dict[str, Callable[[], Case]] = {
    "classify-fan": partial(Classify, "fan_small_12_p4_hybrid", (512, 128), 4),
    "classify-radio": partial(Classify, RADIO, (224, 224), 4),
    "classify-euclidean": partial(Classify, RADIO, (224, 224), 4, "euclidean"),
    "segment-fan": partial(Segment, "fan_small_12_p4_hybrid", 256, 2),
    "segment-vit": partial(Segment, "vit_large_nvdinov2", 256, 1),
    "mal": partial(Mal, "vit-mae-base/16", 512, 1),
    "mlrecog": partial(MlRecog, 224, 16),
}
QUICK: dict[str, Callable[[], Case]] = {
    "classify-fan": partial(Classify, "fan_tiny_8_p4_hybrid", (64, 32), 2),
    "classify-radio": partial(Classify, RADIO, (32, 32), 2),
    "classify-euclidean": partial(Classify, RADIO, (32, 32), 2, "euclidean"),
    "segment-fan": partial(Segment, "fan_tiny_8_p4_hybrid", 32, 2, 32),
    "segment-vit": partial(Segment, RADIO, 32, 2, 32),
    "mal": partial(Mal, "vit-deit-tiny/16", 64, 1),
    "mlrecog": partial(MlRecog, 64, 4),
}
