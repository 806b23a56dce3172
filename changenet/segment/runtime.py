"""The heavy half of the segment task: builds what the shared actions ask for, from a spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset

from changenet.kept_features import is_kept, makes_new
from changenet.runtime import ChangeNetRuntime
from changenet.segment.calibration import calibration_splits
from changenet.segment.checks import multi_scale_infer, multi_scale_train
from changenet.segment.data import SceneDataset, Windowing, ordered_loader
from changenet.segment.datamodule import SceneData
from changenet.segment.evaluator import SegmentEvaluator
from changenet.segment.files import SPLITS, Split, read_split
from changenet.segment.image_files import ImageFiles
from changenet.segment.lightning import SegmentModule
from changenet.segment.losses import pixel_loss
from changenet.segment.model import FINAL, ChangeSegmenter, build_segmenter
from changenet.segment.reading import SceneReader
from changenet.segment.transform import TAO_NORMALIZATION, SceneAugment
from changenet.segment.weights import differences, resized_positions
from fiducial.checkpoints.loading import LoadReport
from fiducial.checkpoints.reading import Checkpoint
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import picture_cache
from fiducial.deploy.card import ModelCard, TensorCard
from fiducial.errors import CheckpointError, Problem
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Graph, GraphInput, Outputs, Predictor
from fiducial.run.console import LOGGER
from fiducial.spec.knob import plain
from fiducial.task import CalibrationData
from fiducial.training.module import TrainingPlan
from fiducial.training.weights import load_network

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ScenePredictor", "SegmentRuntime"]

_SECTIONS = {"test": "evaluate", "infer": "inference"}
"""Split to the section of the spec that says how it is gone through."""


class ScenePredictor(Predictor):
    """Runs the network in torch."""

    runtime = "torch"
    compiled_calls = ("final_at_once",)
    results_call = "final"
    network: ChangeSegmenter

    def __init__(self, network: ChangeSegmenter) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Outputs:
        """Logits ``(B, K, S, S)`` of a :class:`~changenet.segment.data.SceneBatch`."""
        return {FINAL: self.network.final(batch["A"], batch["B"])}


class SegmentRuntime(ChangeNetRuntime):
    """The heavy half of the task for one segment spec."""

    def __init__(self, spec: ExperimentSpec) -> None:
        super().__init__(spec)
        self.data = spec.dataset.segment
        self.normalization = self._configured()
        self._splits: dict[str, Split] = {}

    def _configured(self) -> Normalization:
        mean, std = self.data.augmentation.mean, self.data.augmentation.std
        return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    def split(self, name: str) -> Split:
        """The files of a split, looked up once."""
        if name not in self._splits:
            self._splits[name] = read_split(self.data, name)
        return self._splits[name]

    def network(self) -> ChangeSegmenter:
        """The untrained network the spec describes."""
        model, side = self.spec.model, self.data.img_size
        network = build_segmenter(
            backbone=model.backbone.type,
            image_size=(side, side),
            num_classes=self.data.num_classes,
            embed_dim=model.decode_head.decoder_params.embed_dim,
            use_summary_token=model.decode_head.use_summary_token,
            average_scales=multi_scale_infer(self.spec),
            activation_checkpointing=model.backbone.activation_checkpointing,
        )
        return self.finished(network)

    @property
    def role(self) -> str:
        return "pyramid"

    @property
    def input_size(self) -> tuple[int, int]:
        return (self.data.img_size, self.data.img_size)

    def module(self, *, pretrained: bool) -> SegmentModule:
        """The LightningModule of ``train``; ``pretrained`` loads the weights that the spec names."""
        spec, options = self.spec, self.spec.train.segment
        network = self.network()
        loaded = self.started(network, pretrained=pretrained)
        if multi_scale_train(spec):
            LOGGER.info("train_loss and val_loss are sums over five scales, weighted with %s", options.weights)
        plan = TrainingPlan(
            card=self.card(),
            hyper_parameters=plain(spec),
            weights=loaded,
            tao_model_type="radio" if "radio" in spec.model.backbone.type else None,
            explain=lambda found: differences(spec, found["state_dict"]),
        )
        return SegmentModule(
            network,
            plan,
            self.recipe(),
            num_classes=self.data.num_classes,
            loss=pixel_loss(
                options.loss,
                class_weights=options.class_weights,
                gamma=options.focal_gamma,
                compat_tao=spec.compat == "tao",
            ),
            scale_weights=options.weights if multi_scale_train(spec) else None,
            evaluators={"train": self.evaluator("train"), "val": self.evaluator("val")},
            features=self.feature_cache(network),
        )

    def datamodule(self) -> SceneData:
        """The LightningDataModule of ``train``."""
        keyed = is_kept(self.spec)
        return SceneData(
            self.dataset("train", keyed=keyed and not makes_new(self.spec)),
            self.dataset("val", keyed=keyed) if self.data.validation_split else None,
            batch_size=self.data.batch_size,
            workers=self.data.workers,
        )

    def dataset(self, name: str, *, keyed: bool = False) -> SceneDataset:
        """The pairs of a split, or the windows of them; changed at random in training. ``keyed``: images have keys."""
        return self._scenes(self.split(name), name, keyed=keyed)

    def calibration(self, folders: Sequence[str] = (), key: str = "") -> CalibrationData:
        splits = calibration_splits(self.data, folders, key)
        scenes = [self._scenes(split, "calibration") for split in splits]
        return CalibrationData(ConcatDataset(scenes), ", ".join(str(split.list_path) for split in splits))

    def _scenes(self, split: Split, name: str, *, keyed: bool = False) -> SceneDataset:
        data, tao = self.data, self.spec.compat == "tao"
        training = name == "train"
        cut = data.windows
        windowing = None
        if cut.enable:
            overlap = 0 if name == "val" else round(cut.overlap * data.img_size)
            windowing = Windowing(overlap, cut.per_image, cut.on_change)
        return SceneDataset(
            split,
            SceneReader.of(data, shared=picture_cache(data.cache, data.cache_mb), root=split.root),
            self.normalization_for(training=training),
            side=data.img_size,
            augment=SceneAugment(data.augmentation, tao) if training else None,
            windowing=windowing,
            drawn=training,
            original_size=data.outputs.original_size and name in _SECTIONS,
            seed=self.spec.train.seed,
            keyed=keyed,
        )

    def normalization_for(self, *, training: bool) -> Normalization:
        """What images are normalised with."""
        # TAO-compat: mean and std of the spec count in training only
        return TAO_NORMALIZATION if self.spec.compat == "tao" and not training else self.normalization

    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> list[Iterable[Any]]:
        size, workers = self._batch_size(stage), self.data.workers
        return [ordered_loader(self.dataset(stage), batch_size=size, workers=workers, rank=rank, world_size=world_size)]

    def _batch_size(self, split: str) -> int:
        section: Any = getattr(self.spec, _SECTIONS[split]) if split in _SECTIONS else None
        return section.batch_size if section and section.batch_size > 0 else self.data.batch_size

    def load_weights(self, network: nn.Module, checkpoint: Checkpoint, *, strict: bool = True) -> LoadReport:
        """Put a checkpoint's weights into the network; every tensor is needed, whatever ``strict`` says.

        Raises: CheckpointError naming the spec keys that differ from the checkpoint's architecture.
        """
        return load_network(
            network, checkpoint, explain=lambda weights: differences(self.spec, weights), adapt=resized_positions
        )

    def torch_predictor(self, checkpoint: Checkpoint) -> ScenePredictor:
        network = self.network()
        self.load_weights(network, checkpoint)
        self.adopt(ModelCard.of_checkpoint(checkpoint))
        return ScenePredictor(network)

    def adopt(self, card: ModelCard) -> None:
        """Normalise as the model was trained, where it says so of itself.

        Raises: CheckpointError when an exported model was made for other classes, or averages other scales.
        """
        mine = {"num_classes": self.data.num_classes, "multi_scale_infer": multi_scale_infer(self.spec)}
        problems = [
            Problem(
                f"dataset.segment.{key}",
                f"{value!r} in the spec, {card.details[key]!r} in the model",
                f"set {card.details[key]}",
            )
            for key, value in mine.items()
            if card.is_exported and key in card.details and card.details[key] != value
        ]
        if problems:
            raise CheckpointError.of(problems)
        side = card.details.get("img_size", self.data.img_size)
        if side != self.data.img_size and not self.data.windows.enable:
            LOGGER.warning(
                "images are resized to %s pixels; the model was trained at %s, and is best at it: "
                "dataset.segment.img_size=%s",
                self.data.img_size,
                side,
                side,
            )
        # TAO-compat: outside of training TAO normalises with constants
        follows = card.mean and self.spec.compat == "off"
        self.follow(Normalization.of(card) if follows else None, self._configured())

    def graph(self) -> Graph:
        """Names and shapes of the exported model, as TAO has them; batch axis first."""
        shape = (3, self.data.img_size, self.data.img_size)
        return Graph(
            inputs={"input0": GraphInput("A", shape, image=True), "input1": GraphInput("B", shape, image=True)},
            outputs=("output0", "output1", "output2", "output3", FINAL),
            batch_axis="batch_size",
            needed=(FINAL,),
            shapes={FINAL: (self.data.num_classes, *shape[1:])},
        )

    def card(self) -> ModelCard:
        data = self.data
        details = {
            "img_size": data.img_size,
            "num_classes": data.num_classes,
            "multi_scale_infer": multi_scale_infer(self.spec),
            "windows": plain(data.windows),
            "raster": plain(data.raster),
            "color_map": data.color_map,
            "data_name": data.data_name,
        }
        return ModelCard(
            network="visual_changenet",
            task="segment",
            backbone=self.spec.model.backbone.type,
            inputs={name: TensorCard(item.shape) for name, item in self.graph().inputs.items()},
            mean=self.normalization.mean,
            std=self.normalization.std,
            details=details,
        )

    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> SegmentEvaluator:
        files = self._files(stage, folder) if folder is not None else None
        return SegmentEvaluator(stage, self.data.num_classes, files=files)

    def _files(self, stage: Stage, folder: Path) -> ImageFiles:
        section: Any = getattr(self.spec, _SECTIONS[stage])
        batch, every = self._batch_size(stage), section.vis_after_n_batches
        facts = {
            "data": self.data.root_dir,
            "list": getattr(self.data, SPLITS[stage]),
            "size": self.data.img_size,
            "backbone": self.spec.model.backbone.type,
        }
        split = self.split(stage)
        return ImageFiles(
            folder,
            self.data,
            split,
            SceneReader.of(self.data, cached=False, root=split.root),
            show=lambda index: self.data.outputs.pictures and index // batch % every == 0,
            facts=facts,
        )
