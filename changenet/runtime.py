"""What the heavy halves of both tasks have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset

from changenet.deepstream import write_deepstream
from changenet.kept_features import is_kept
from fiducial.backbones.deformable import make_precise
from fiducial.checkpoints.loading import LoadReport
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.data.normalization import Normalization
from fiducial.data.picture_keys import PictureKeys
from fiducial.errors import Problem, UserError
from fiducial.ops import Formulation
from fiducial.prediction import Batch
from fiducial.run.console import LOGGER
from fiducial.run.resume import place_of
from fiducial.task import TaskRuntime
from fiducial.training.features import FeatureCache
from fiducial.training.optim import OptimizerRecipe
from fiducial.training.weights import start_weights

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ChangeNetRuntime"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class ChangeNetRuntime(TaskRuntime):
    """A runtime for one spec of Visual ChangeNet; ``normalization`` is what images are prepared with now."""

    spec: ExperimentSpec
    normalization: Normalization

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec = spec

    @abstractmethod
    def dataset(self, split: str) -> Dataset[dict[str, Any]]:
        """The items of ``train``, ``val``, ``test`` or ``infer``. Raises: UserError when its files are not there."""

    @abstractmethod
    def load_weights(self, network: nn.Module, checkpoint: Checkpoint, *, strict: bool = True) -> LoadReport:
        """Put a checkpoint's weights into the network. Raises: CheckpointError naming the keys that differ."""

    def finished(self, network: NetworkT) -> NetworkT:
        """An untrained network with what the spec asks of its operators."""
        if self.spec.model.precise_msda:
            make_precise(network)
        return network

    @property
    @abstractmethod
    def role(self) -> str:
        """What the backbone is built for: ``pyramid`` or ``embedding``."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """``(height, width)`` of the images that the network takes."""

    def started(self, network: nn.Module, *, pretrained: bool) -> str:
        """Make a network ready to train: load what the spec names, freeze what it freezes; returns what was loaded."""
        backbone = self.spec.model.backbone
        loaded = self._begin(network, backbone.weights) if pretrained else ""
        if backbone.freeze_backbone:
            network.backbone.freeze()  # type: ignore[operator, union-attr]
        return loaded

    def feature_cache(self, network: nn.Module, keys: PictureKeys | None = None) -> FeatureCache | None:
        """Where training keeps the features of a frozen backbone; None where it keeps none."""
        train = self.spec.train
        if train.feature_cache == "off" or not is_kept(self.spec):
            return None
        backbone: Any = network.backbone
        identity = f"{self.spec.model.backbone.type} {self.role} {train.precision}"
        return FeatureCache(backbone, train.feature_cache, max_mb=train.feature_cache_mb, identity=identity, keys=keys)

    def _begin(self, network: nn.Module, backbone_weights: str | None) -> str:
        spec = self.spec
        return start_weights(
            network,
            whole=spec.train.pretrained_model_path,
            backbone=spec.model.backbone.model_copy(update={"pretrained_backbone_path": backbone_weights}),
            role=self.role,
            image_size=self.input_size,
            encryption_key=spec.encryption_key,
            load=lambda checkpoint: self.load_weights(network, checkpoint, strict=False),
        )

    def check_weights(self, resume: Path | None, backbone_weights: Path | None) -> Iterator[Problem]:
        """Why weights do not fit: of ``resume``, else of what the spec names. Nothing but names and shapes is read.

        ``backbone_weights``: where on this machine those of the backbone are.
        """
        with torch.device("meta"):
            network = self.network()
        try:
            if resume is None:
                self._begin(network, str(backbone_weights) if backbone_weights else None)
            else:
                checkpoint = read(resume, device="meta", key=self.spec.encryption_key)
                place_of(checkpoint.raw, resume)
                self.load_weights(network, checkpoint)
        except UserError as error:
            yield from error.problems

    def recipe(self) -> OptimizerRecipe:
        """The optimizer and its schedule."""
        optim = self.spec.train.optim
        arguments: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "momentum": optim.momentum}
        if optim.betas is not None:
            arguments["betas"] = tuple(optim.betas)
        return OptimizerRecipe(arguments, optim.optim, optim.policy, self.spec.train.num_epochs)

    def follow(self, recorded: Normalization | None, configured: Normalization) -> None:
        """Normalise as the model was trained, where it says so; else as configured. One rule for both tasks."""
        if recorded is not None and recorded != configured:
            LOGGER.warning(
                "images are normalised with mean %s, std %s, as the model was trained; the spec says %s, %s",
                *(list(values) for values in (*astuple(recorded), *astuple(configured))),
            )
        self.normalization = recorded or configured

    def samples(self, count: int) -> Sequence[Batch]:
        for split in ("test", "infer", "val", "train"):
            try:
                dataset: Any = self.dataset(split)
            except UserError:
                continue
            return [dataset[i] for i in range(min(count, len(dataset)))]
        return []

    def formulation(self, given: frozenset[str]) -> Formulation:
        # TAO-compat: the plugin's node, which only TensorRT runs, is what TAO writes
        if self.spec.compat == "tao" and "export.deformable_attention" not in given:
            return "plugin"
        return self.spec.export.deformable_attention

    def write_beside_export(self, onnx_path: Path) -> tuple[Path, ...]:
        if not self.spec.export.serialize_nvdsinfer:
            return ()
        task = self.spec.task
        return write_deepstream(
            onnx_path,
            self.graph(),
            self.normalization,
            task=task,
            num_classes=getattr(self.spec.dataset, task).num_classes,
            compat_tao=self.spec.compat == "tao" and task == "classify",
        )
