"""The heavy half of the segment task: builds what the shared actions ask for, from a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from changenet.normalization import Normalization
from changenet.segment.checks import multi_scale_infer, multi_scale_train
from changenet.segment.data import ImageShards, SceneDataset, Windowing, scene_loader
from changenet.segment.datamodule import SceneData
from changenet.segment.evaluator import ImageRecord, SegmentEvaluator
from changenet.segment.files import SPLITS, Split, read_split
from changenet.segment.image_files import ImageFiles
from changenet.segment.lightning import SegmentModule
from changenet.segment.losses import pixel_loss
from changenet.segment.model import ChangeSegmenter, build_segmenter
from changenet.segment.outputs import write_evaluation, write_inference
from changenet.segment.reading import SceneReader
from changenet.segment.transform import TAO_NORMALIZATION, SceneAugment
from changenet.segment.weights import differences, resized_positions
from changenet.training import TrainingPlan, optimizer_options
from fiducial.backbones.deformable import make_precise
from fiducial.backbones.weights import KEY_MAPS
from fiducial.checkpoints.loading import LoadReport, load_into
from fiducial.checkpoints.reading import Checkpoint
from fiducial.data.sharding import BatchShards
from fiducial.errors import CheckpointError, Problem
from fiducial.run.console import LOGGER
from fiducial.spec.knob import plain
from fiducial.spec.redact import redact
from fiducial.task import Graph, GraphInput

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ScenePredictor", "SegmentRuntime"]

_SECTIONS = {"test": "evaluate", "infer": "inference"}
"""Split to the section of the spec that says how it is gone through."""


class ScenePredictor:
    """Runs the network in torch."""

    runtime = "torch"

    def __init__(self, network: ChangeSegmenter) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits ``(B, K, S, S)`` of a :class:`~changenet.segment.data.SceneBatch`."""
        return self.network.final(batch["A"], batch["B"])


class SegmentRuntime:
    """Implements :class:`fiducial.task.TaskRuntime` for one segment spec."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec = spec
        self.data = spec.dataset.segment
        mean, std = self.data.augmentation.mean, self.data.augmentation.std
        self.normalization = Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
        self.split = cache(self._read_split)
        self.files = cache(self._files)
        self._running = "test"

    def _read_split(self, name: str) -> Split:
        return read_split(self.data, name)

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
        if model.precise_msda:
            make_precise(network)
        return network

    def module(self, *, pretrained: bool) -> SegmentModule:
        """The LightningModule of ``train``; ``pretrained`` loads the weights that the spec names."""
        spec, train, backbone = self.spec, self.spec.train, self.spec.model.backbone
        network = self.network()
        loaded = self._load_pretrained(network) if pretrained else ""
        if backbone.freeze_backbone:
            network.backbone.freeze()  # type: ignore[operator]
        options = train.segment
        if multi_scale_train(spec):
            LOGGER.info("train_loss and val_loss are sums over five scales, weighted with %s", options.weights)
        return SegmentModule(
            network,
            TrainingPlan(
                optim=optimizer_options(spec),
                num_epochs=train.num_epochs,
                normalization=self.normalization,
                record={"img_size": self.data.img_size, **({"weights": loaded} if loaded else {})},
                tao_model_type="radio" if "radio" in backbone.type else None,
                explain=lambda found: differences(spec, found["state_dict"]),
            ),
            num_classes=self.data.num_classes,
            loss=pixel_loss(
                options.loss,
                class_weights=options.class_weights,
                gamma=options.focal_gamma,
                compat_tao=spec.compat == "tao",
            ),
            scale_weights=options.weights if multi_scale_train(spec) else None,
            hyper_parameters=redact(plain(spec)),
        )

    def _load_pretrained(self, network: ChangeSegmenter) -> str:
        """Load what the spec names; returns what came from where, in words (empty when it names nothing)."""
        from fiducial.backbones.weights import load_backbone
        from fiducial.checkpoints.reading import read

        backbone, whole = self.spec.model.backbone, self.spec.train.pretrained_model_path
        side = self.data.img_size
        if whole:
            checkpoint = read(whole, key=self.spec.encryption_key, where="train.pretrained_model_path")
            return self.load_weights(network, checkpoint).summary()
        if backbone.pretrained_backbone_path:
            report = load_backbone(
                network.backbone,
                backbone.type,
                "pyramid",
                backbone.pretrained_backbone_path,
                image_size=(side, side),
                encryption_key=self.spec.encryption_key,
            )
            return report.summary()
        return ""

    def datamodule(self) -> SceneData:
        """The LightningDataModule of ``train``."""
        return SceneData(
            self.dataset("train"),
            self.dataset("val") if self.data.validation_split else None,
            batch_size=self.data.batch_size,
            workers=self.data.workers,
        )

    def dataset(self, name: str) -> SceneDataset:
        """The pairs of a split, or the windows of them; changed at random in training."""
        data, tao = self.data, self.spec.compat == "tao"
        training = name == "train"
        cut = data.windows
        windowing = None
        if cut.enable:
            overlap = 0 if name == "val" else round(cut.overlap * data.img_size)
            windowing = Windowing(overlap, cut.per_image, cut.on_change)
        return SceneDataset(
            self.split(name),
            SceneReader.of(data),
            self.normalization_for(training=training),
            side=data.img_size,
            augment=SceneAugment(data.augmentation, tao) if training else None,
            windowing=windowing,
            drawn=training,
            once=name == "val",
            original_size=data.outputs.original_size and name in _SECTIONS,
            seed=self.spec.train.seed,
        )

    def normalization_for(self, *, training: bool) -> Normalization:
        """What images are normalised with."""
        # TAO-compat: mean and std of the spec count in training only
        return TAO_NORMALIZATION if self.spec.compat == "tao" and not training else self.normalization

    def loader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Batches of ``test`` or ``infer`` in the order of the list."""
        self._running = split
        dataset, size = self.dataset(split), self._batch_size(split)
        order: Any
        if self.data.windows.enable:
            order = ImageShards(dataset.image_of_items, size, rank=rank, world_size=world_size)
        else:
            order = BatchShards(len(dataset), size, rank=rank, world_size=world_size)
        return scene_loader(dataset, workers=self.data.workers, batch_sampler=order)

    def _batch_size(self, split: str) -> int:
        section: Any = getattr(self.spec, _SECTIONS[split])
        size: int = section.batch_size
        return size if size > 0 else self.data.batch_size

    def load_weights(self, network: nn.Module, checkpoint: Checkpoint) -> LoadReport:
        """Put a checkpoint's weights into the network; every tensor is needed.

        Raises: CheckpointError naming the spec keys that differ from the checkpoint's architecture.
        """
        weights = dict(checkpoint.state_dict)
        if not any(key.startswith("model.") for key in weights):
            weights = {f"model.{key}": value for key, value in weights.items()}
        found = list(differences(self.spec, weights))
        if found:
            raise CheckpointError.of(found)
        report = load_into(
            nn.ModuleDict({"model": network}),
            Checkpoint(checkpoint.path, checkpoint.kind, weights, checkpoint.meta, None),
            key_maps=KEY_MAPS,
            what=str(checkpoint.path),
            strict=True,
            allow=("model.backbone.norm.*",),  # unused, and absent from files of TAO up to 6.25.7
            adapt=resized_positions,
        )
        LOGGER.info("%s", report.summary())
        return report

    def torch_predictor(self, checkpoint: Checkpoint) -> ScenePredictor:
        """A predictor over a checkpoint's weights; takes over the normalisation the checkpoint was trained with."""
        network = self.network()
        self.load_weights(network, checkpoint)
        self.use_normalization_of(checkpoint.raw if isinstance(checkpoint.raw, dict) else {})
        return ScenePredictor(network)

    def use_normalization_of(self, meta: Mapping[str, Any]) -> None:
        """Normalise as the model was trained, where it says so of itself.

        Raises: CheckpointError when an exported model was made for other classes, or averages other scales.
        """
        recorded = meta.get("fiducial") or {}
        mine = {"num_classes": self.data.num_classes, "multi_scale_infer": multi_scale_infer(self.spec)}
        problems = [
            Problem(
                f"dataset.segment.{key}",
                f"{value!r} in the spec, {recorded[key]!r} in the model",
                f"set {recorded[key]}",
            )
            for key, value in mine.items()
            if key in recorded and recorded[key] != value
        ]
        if problems:
            raise CheckpointError.of(problems)
        side = recorded.get("img_size", self.data.img_size)
        if side != self.data.img_size and not self.data.windows.enable:
            LOGGER.warning(
                "images are resized to %d pixels; the model was trained at %d, and is best at it: "
                "dataset.segment.img_size=%d",
                self.data.img_size,
                side,
                side,
            )
        if "mean" not in recorded or self.spec.compat == "tao":
            return
        known = Normalization(tuple(recorded["mean"]), tuple(recorded["std"]))
        if known != self.normalization:
            LOGGER.warning(
                "images are normalised with mean %s, std %s, as the model was trained; the spec says otherwise",
                *map(list, astuple(known)),
            )
        self.normalization = known

    def graph(self) -> Graph:
        """Names and shapes of the exported model, as TAO has them; batch axis first."""
        shape = (3, self.data.img_size, self.data.img_size)
        return Graph(
            inputs={"input0": GraphInput("A", shape), "input1": GraphInput("B", shape)},
            outputs=("output0", "output1", "output2", "output3", "output_final"),
            batch_axis="batch_size",
        )

    def metadata(self) -> dict[str, Any]:
        """What an exported model must say of itself so that others prepare its inputs right."""
        return {
            "task": "segment",
            "backbone": self.spec.model.backbone.type,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
            "img_size": self.data.img_size,
            "num_classes": self.data.num_classes,
            "multi_scale_infer": multi_scale_infer(self.spec),
            "windows": plain(self.data.windows),
            "raster": plain(self.data.raster),
            "color_map": self.data.color_map,
            "data_name": self.data.data_name,
        }

    def evaluator(self) -> SegmentEvaluator:
        """Makes masks of logits and writes them, for the split whose loader was asked for last."""
        return SegmentEvaluator(
            self.data.num_classes,
            lambda image: self.files(self._running)(image),
            keep_prob=self.data.outputs.probabilities,
        )

    def _files(self, split: str) -> ImageFiles:
        section: Any = getattr(self.spec, _SECTIONS[split])
        batch, every = self._batch_size(split), section.vis_after_n_batches
        return ImageFiles(
            Path(self.spec.results_dir or ".").expanduser().resolve(),
            self.data,
            self.split(split),
            SceneReader.of(self.data, cached=False),
            show=lambda index: self.data.outputs.pictures and index // batch % every == 0,
        )

    def write(
        self, action: str, results: Sequence[ImageRecord], folder: Path, facts: Mapping[str, Any]
    ) -> dict[str, float]:
        """Write what sums up the images; returns the KPIs of ``evaluate``."""
        if action == "inference":
            LOGGER.info("masks: %s", folder / "masks")
            LOGGER.info("changes: %s", write_inference(folder, results, self.files("infer")))
            return {}
        kpis = write_evaluation(folder, results, self.files("test"), facts)
        shown = ("test_iou_1", "test_F1_1", "test_precision_1", "test_recall_1", "test_miou", "test_acc")
        LOGGER.info("%d images: %s", len(results), ", ".join(f"{name} {kpis[name]:.4f}" for name in shown))
        LOGGER.info("report: %s", folder / "report.html")
        return kpis

    def facts(self, action: str) -> dict[str, Any]:
        """What the report says about the data."""
        split = "test" if action == "evaluate" else "infer"
        facts = {"data": self.data.root_dir, "list": getattr(self.data, SPLITS[split]), "size": self.data.img_size}
        return {**facts, "backbone": self.spec.model.backbone.type}
