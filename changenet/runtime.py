"""What the heavy halves of both tasks have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from torch.utils.data import Dataset

from changenet.deepstream import write_deepstream
from fiducial.backbones.deformable import make_precise
from fiducial.checkpoints.loading import LoadReport
from fiducial.checkpoints.reading import Checkpoint
from fiducial.data.normalization import Normalization
from fiducial.errors import UserError
from fiducial.ops import Formulation
from fiducial.prediction import Batch
from fiducial.run.console import LOGGER
from fiducial.task import TaskRuntime
from fiducial.training.optim import OptimizerRecipe
from fiducial.training.weights import start_weights

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ChangeNetRuntime"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class ChangeNetRuntime(TaskRuntime):
    """A runtime for one spec of Visual ChangeNet; ``normalization`` is what images are prepared with now."""

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

    def started(self, network: nn.Module, *, role: str, image_size: tuple[int, int], pretrained: bool) -> str:
        """Make a network ready to train: load what the spec names, freeze what it freezes; returns what was loaded."""
        spec, backbone = self.spec, self.spec.model.backbone
        loaded = ""
        if pretrained:
            loaded = start_weights(
                network,
                whole=spec.train.pretrained_model_path,
                backbone=backbone,
                role=role,
                image_size=image_size,
                encryption_key=spec.encryption_key,
                load=lambda checkpoint: self.load_weights(network, checkpoint, strict=False),
            )
        if backbone.freeze_backbone:
            network.backbone.freeze()  # type: ignore[operator, union-attr]
        return loaded

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
