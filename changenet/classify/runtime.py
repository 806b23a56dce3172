"""The heavy half of the classify task: builds what the shared actions ask for, from a spec."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from changenet.classify.calibration import calibration_tables
from changenet.classify.checks import effective_margin, validates
from changenet.classify.data import PairDataset
from changenet.classify.datamodule import PairData
from changenet.classify.evaluator import PairEvaluator, PairFiles
from changenet.classify.lightning import ClassifyModule
from changenet.classify.model import EuclideanClassifier, LearnableClassifier, build_classifier
from changenet.classify.outputs import group_names
from changenet.classify.predictor import PairPredictor
from changenet.classify.rows import SPLITS, Layout, PairTable, read_pairs
from changenet.classify.transform import PairAugment, normalization
from changenet.classify.weights import SIZE_DEPENDENT, differences
from changenet.kept_features import MOST_VARIANTS, is_kept, makes_new
from changenet.runtime import ChangeNetRuntime
from fiducial.checkpoints.loading import LoadReport
from fiducial.checkpoints.reading import Checkpoint
from fiducial.data.loaders import ordered_loader
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import picture_cache
from fiducial.data.picture_keys import PictureKeys
from fiducial.deploy.card import ENTRY, ModelCard, TensorCard
from fiducial.errors import CheckpointError, Problem
from fiducial.metric_table import Stage
from fiducial.prediction import Graph, GraphInput
from fiducial.run.console import LOGGER
from fiducial.spec.knob import plain
from fiducial.task import CalibrationData
from fiducial.training.module import TrainingPlan
from fiducial.training.weights import load_network

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ClassifyRuntime"]

TAO_MARGIN = 2.0
"""What TAO's training and validation metrics use, whatever the spec says."""
_COMPOSITION = ("input_map", "concat_type", "difference_module", "num_golden")
"""What the card says of how an image is made, and the spec must say too."""
_FIRST_LIGHTNING_WITH_CLIP = (2, 6)
"""Files written with an older Lightning come from TAO up to 6.26, which normalises C-RADIO as configured."""


def _version(text: str | None) -> tuple[int, ...]:
    """``2.5.0.post0`` as (2, 5); the newest when unknown."""
    return tuple(int(part) for part in (text or "99.0").split(".")[:2] if part.isdecimal())


class ClassifyRuntime(ChangeNetRuntime):
    """The heavy half of the task for one classify spec."""

    def __init__(self, spec: ExperimentSpec) -> None:
        super().__init__(spec)
        self.data = spec.dataset.classify
        self.layout = Layout.of(self.data)
        self.learnable = spec.model.classify.difference_module == "learnable"
        self.margin = effective_margin(spec)
        self.normalization = self._configured(clip=spec.compat == "off")
        self._tables: dict[str, PairTable] = {}

    def _configured(self, *, clip: bool) -> Normalization:
        return normalization(self.data.augmentation_config, self.spec.model.backbone.type, clip=clip)

    def table(self, split: str) -> PairTable:
        """The rows of a split, read once."""
        if split not in self._tables:
            self._tables[split] = read_pairs(self.data, split)
        return self._tables[split]

    def network(self) -> LearnableClassifier | EuclideanClassifier:
        """The untrained network the spec describes."""
        model, head = self.spec.model, self.spec.model.decode_head
        network = build_classifier(
            backbone=model.backbone.type,
            difference_module=model.classify.difference_module,
            image_size=self.layout.composed,
            embed_dim=head.decoder_params.embed_dim,
            embed_dec=model.classify.embed_dec,
            num_classes=self.data.num_classes,
            learnable_difference_modules=model.classify.learnable_difference_modules,
            embedding_vectors=model.classify.embedding_vectors,
            num_golden=self.data.num_golden,
            use_summary_token=head.use_summary_token,
            activation_checkpointing=model.backbone.activation_checkpointing,
        )
        return self.finished(network)

    @property
    def role(self) -> str:
        return "pyramid" if self.learnable else "embedding"

    @property
    def input_size(self) -> tuple[int, int]:
        return self.layout.composed

    def module(self, *, pretrained: bool) -> ClassifyModule:
        """The LightningModule of ``train``; ``pretrained`` loads the weights that the spec names."""
        spec, train, model = self.spec, self.spec.train, self.spec.model
        network = self.network()
        loaded = self.started(network, pretrained=pretrained)
        plan = TrainingPlan(
            card=self.card(),
            hyper_parameters=plain(spec),
            weights=loaded,
            tao_model_type="radio_learnable" if self.learnable and "radio" in model.backbone.type else None,
            explain=lambda found: differences(spec, found["state_dict"], found.get("hyper_parameters")),
        )
        return ClassifyModule(
            network,
            plan,
            self.recipe(),
            learnable=self.learnable,
            cls_weight=train.classify.cls_weight,
            contrastive_margin=model.classify.train_margin_euclid,
            compat_tao=spec.compat == "tao",
            evaluators={"train": self.evaluator("train"), "val": self.evaluator("val")},
            features=self.feature_cache(network, self.keys if is_kept(spec) else None),
        )

    @cached_property
    def keys(self) -> PictureKeys:
        """The names of pictures, of training and validation alike."""
        pictures = sum(len(self.table(split).rows) for split in ("train", *(["val"] if validates(self.spec) else [])))
        return PictureKeys(f"classify {self.layout} {self.normalization}", 2 * MOST_VARIANTS * pictures)

    def datamodule(self) -> PairData:
        """The LightningDataModule of ``train``."""
        keys = self.keys if is_kept(self.spec) else None
        return PairData(
            self.dataset("train", keys=None if makes_new(self.spec) else keys),
            self.dataset("val", keys=keys) if validates(self.spec) else None,
            batch_size=self.data.batch_size,
            workers=self.data.workers,
            fpratio=self.data.fpratio_sampling,
        )

    def calibration(self, folders: Sequence[str] = (), key: str = "") -> CalibrationData:
        tables = calibration_tables(self.data, folders, key)
        align = self.data.align == "shift"
        pairs = [PairDataset(table, self.normalization, align=align) for table in tables]
        return CalibrationData(ConcatDataset(pairs), ", ".join(str(table.csv_path) for table in tables))

    def dataset(self, split: str, *, keys: PictureKeys | None = None) -> PairDataset:
        """The pairs of a split, augmented in training when the spec says so. ``keys`` name pictures that are kept."""
        config = self.data.augmentation_config
        augment = PairAugment(config, self.spec.compat == "tao") if split == "train" and config.augment else None
        training = split == "train"
        return PairDataset(
            self.table(split),
            self.normalization,
            augment=augment,
            random_goldens=training or self.spec.compat == "tao" or self.spec.evaluate.random_goldens,
            align=self.data.align == "shift",
            cache_mb=self.data.golden_cache_mb,
            shared=picture_cache(self.data.cache, self.data.cache_mb),
            seed=self.spec.train.seed,
            keys=keys,
            read_all=self.spec.train.tensorboard.enabled,  # whose pictures are those of a batch
        )

    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> list[DataLoader[Any]]:
        section: Any = {"test": self.spec.evaluate, "infer": self.spec.inference}.get(stage)
        size = section.batch_size if section and section.batch_size > 0 else self.data.batch_size
        return [
            ordered_loader(
                self.dataset(stage), batch_size=size, workers=self.data.workers, rank=rank, world_size=world_size
            )
        ]

    def load_weights(self, network: nn.Module, checkpoint: Checkpoint, *, strict: bool = True) -> LoadReport:
        """Put a checkpoint's weights into the network.

        Strict loading needs every tensor; otherwise layers whose shape follows from the image size stay as they are.

        Raises: CheckpointError naming the spec keys that differ from the checkpoint's architecture.
        """
        ours = isinstance(checkpoint.raw, dict) and ENTRY in checkpoint.raw
        trained = checkpoint.meta.get("hyper_parameters") if ours else None
        return load_network(
            network,
            checkpoint,
            explain=lambda weights: differences(self.spec, weights, trained) if strict else (),
            strict=strict,
            drop=("criterion.weight",),
            size_dependent=SIZE_DEPENDENT,
        )

    def torch_predictor(self, checkpoint: Checkpoint) -> PairPredictor:
        network = self.network()
        self.load_weights(network, checkpoint)
        self.adopt(ModelCard.of_checkpoint(checkpoint))
        return PairPredictor(
            network, cache_mb=min(self.spec.evaluate.golden_cache_mb, self.spec.inference.golden_cache_mb)
        )

    def adopt(self, card: ModelCard) -> None:
        """Normalise as the model was trained: by its own record, else by the generation of TAO that wrote it.

        Raises: CheckpointError when images are composed otherwise than the model takes them.
        """
        mine = self.card().details
        problems = [
            Problem(key, f"{mine[key]!r} in the spec, {card.details[key]!r} in the file", f"set {key} to the model's")
            for key in _COMPOSITION
            # as text: two maps of the same lights in another order are another image
            if card.is_exported and key in card.details and json.dumps(card.details[key]) != json.dumps(mine[key])
        ]
        if problems:
            raise CheckpointError.of(problems)
        written_with = _version(card.versions.get("pytorch-lightning"))
        clip = self.spec.compat == "off" and written_with >= _FIRST_LIGHTNING_WITH_CLIP
        self.follow(Normalization.of(card) if card.mean else None, self._configured(clip=clip))
        if not card.mean and self._configured(clip=True) != self._configured(clip=False):
            LOGGER.info("normalising with mean %s, std %s", *map(list, astuple(self.normalization)))
            if clip and written_with == _FIRST_LIGHTNING_WITH_CLIP:
                LOGGER.warning(
                    "TAO 7.0.0 and 7.0.1 wrote the same kind of file but normalise C-RADIO differently: using CLIP's "
                    "mean and std; augmentation_config.radio_normalization: as_configured is the other"
                )

    def graph(self) -> Graph:
        """Names and shapes of the exported model; batch axis first."""
        height, width = self.layout.composed
        goldens = (self.data.num_golden,) if self.data.num_golden > 1 else ()
        return Graph(
            inputs={
                "input_1": GraphInput("test", (3, height, width), image=True),
                "input_2": GraphInput("golden", (*goldens, 3, height, width), image=True),
            },
            outputs=("output",),
            batch_axis="batch",
            shapes={"output": (self.data.num_classes,) if self.learnable else ()},
        )

    def card(self) -> ModelCard:
        data, model = self.data, self.spec.model
        details = {
            "difference_module": model.classify.difference_module,
            "image_height": data.image_height,
            "image_width": data.image_width,
            "input_map": data.input_map,
            "concat_type": "grid" if self.layout.grid else "linear",
            "grid_map": data.grid_map,
            "num_golden": data.num_golden,
            "align": data.align,
        }
        return ModelCard(
            network="visual_changenet",
            task="classify",
            backbone=model.backbone.type,
            inputs={name: TensorCard(item.shape) for name, item in self.graph().inputs.items()},
            mean=self.normalization.mean,
            std=self.normalization.std,
            classes=("PASS", "FAIL"),
            threshold=self.margin,
            details=details,
        )

    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> PairEvaluator:
        margin, train = self.margin, self.spec.train
        if stage in ("train", "val") and self.spec.compat == "tao":
            margin = TAO_MARGIN
        groups = None
        if stage == "val" and any(
            "/" in (name or "") for name in (train.checkpointer.monitor, train.optim.monitor_name)
        ):
            groups = group_names(self.table("val"), self.data.group_by) if validates(self.spec) else None
        files = None
        if folder is not None:
            source = getattr(self.data, SPLITS[stage])
            facts = {"csv": source.csv_path, "images": source.images_dir, "backbone": self.spec.model.backbone.type}
            files = PairFiles(folder, self.spec, self.table(stage), facts)
        return PairEvaluator(stage, margin=margin, groups=groups, where=partial(self._where, stage), files=files)

    def _where(self, stage: Stage, row: int) -> str:
        table = self.table(stage)
        return table.where(table.rows[row])
