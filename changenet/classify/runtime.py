"""The heavy half of the classify task: builds what the shared actions ask for, from a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from changenet.classify.checks import effective_margin, validates
from changenet.classify.data import PairDataset
from changenet.classify.datamodule import PairData, ordered_loader
from changenet.classify.lightning import ClassifyModule
from changenet.classify.metrics import suggest_margin
from changenet.classify.model import EuclideanClassifier, LearnableClassifier, build_classifier
from changenet.classify.outputs import (
    PairEvaluator,
    PairResults,
    group_names,
    summary_line,
    write_evaluation,
    write_inference,
)
from changenet.classify.predictor import PairPredictor
from changenet.classify.rows import SPLITS, Layout, PairTable, read_pairs
from changenet.classify.transform import PairAugment, normalization
from changenet.classify.weights import SIZE_DEPENDENT, differences
from changenet.normalization import Normalization
from changenet.training import TrainingPlan, optimizer_options
from fiducial.backbones.deformable import make_precise
from fiducial.backbones.weights import KEY_MAPS
from fiducial.checkpoints.loading import LoadReport, load_into
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError
from fiducial.run.console import LOGGER
from fiducial.spec.knob import plain
from fiducial.spec.redact import redact
from fiducial.task import Graph, GraphInput

if TYPE_CHECKING:
    from changenet.config import ExperimentSpec

__all__ = ["ClassifyRuntime"]

_FIRST_LIGHTNING_WITH_CLIP = (2, 6)
"""Files written with an older Lightning come from TAO up to 6.26, which normalises C-RADIO as configured."""


def _version(text: str | None) -> tuple[int, ...]:
    """``2.5.0.post0`` as (2, 5); the newest when unknown."""
    return tuple(int(part) for part in (text or "99.0").split(".")[:2] if part.isdecimal())


class ClassifyRuntime:
    """Implements :class:`fiducial.task.TaskRuntime` for one classify spec."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec = spec
        self.data = spec.dataset.classify
        self.layout = Layout.of(self.data)
        self.learnable = spec.model.classify.difference_module == "learnable"
        self.margin = effective_margin(spec)
        self.normalization = normalization(
            self.data.augmentation_config, spec.model.backbone.type, clip=spec.compat == "off"
        )
        self._tables: dict[str, PairTable] = {}

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
        if model.precise_msda:
            make_precise(network)
        return network

    def module(self, *, pretrained: bool) -> ClassifyModule:
        """The LightningModule of ``train``; ``pretrained`` loads the weights that the spec names."""
        spec, train, model = self.spec, self.spec.train, self.spec.model
        network = self.network()
        loaded = self._load_pretrained(network) if pretrained else ""
        if model.backbone.freeze_backbone:
            network.backbone.freeze()  # type: ignore[operator]
        per_group = "/" in (train.checkpointer.monitor or "") or "/" in train.optim.monitor_name
        return ClassifyModule(
            network,
            TrainingPlan(
                optim=optimizer_options(spec),
                num_epochs=train.num_epochs,
                normalization=self.normalization,
                record={"weights": loaded} if loaded else {},
                tao_model_type="radio_learnable" if self.learnable and "radio" in model.backbone.type else None,
                explain=lambda found: differences(spec, found["state_dict"], found.get("hyper_parameters")),
            ),
            learnable=self.learnable,
            cls_weight=train.classify.cls_weight,
            contrastive_margin=model.classify.train_margin_euclid,
            eval_margin=self.margin,
            compat_tao=spec.compat == "tao",
            groups=group_names(self.table("val"), self.data.group_by) if validates(spec) and per_group else None,
            hyper_parameters=redact(plain(spec)),
        )

    def _load_pretrained(self, network: LearnableClassifier | EuclideanClassifier) -> str:
        """Load what the spec names; returns what came from where, in words (empty when it names nothing)."""
        from fiducial.backbones.weights import load_backbone
        from fiducial.checkpoints.reading import read

        backbone, whole = self.spec.model.backbone, self.spec.train.pretrained_model_path
        if whole:
            checkpoint = read(whole, key=self.spec.encryption_key, where="train.pretrained_model_path")
            return self.load_weights(network, checkpoint, strict=False).summary()
        if backbone.pretrained_backbone_path:
            role = "pyramid" if self.learnable else "embedding"
            report = load_backbone(
                network.backbone,
                backbone.type,
                role,
                backbone.pretrained_backbone_path,
                image_size=self.layout.composed,
                encryption_key=self.spec.encryption_key,
            )
            return report.summary()
        return ""

    def datamodule(self) -> PairData:
        """The LightningDataModule of ``train``."""
        return PairData(
            self.dataset("train"),
            self.dataset("val") if validates(self.spec) else None,
            batch_size=self.data.batch_size,
            workers=self.data.workers,
            fpratio=self.data.fpratio_sampling,
        )

    def dataset(self, split: str) -> PairDataset:
        """The pairs of a split, augmented in training when the spec says so."""
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
            seed=self.spec.train.seed,
        )

    def loader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Batches of ``test`` or ``infer`` in dataset order; ranks share whole batches of one list."""
        section = self.spec.evaluate if split == "test" else self.spec.inference
        size = section.batch_size if section.batch_size > 0 else self.data.batch_size
        return ordered_loader(
            self.dataset(split), batch_size=size, workers=self.data.workers, rank=rank, world_size=world_size
        )

    def load_weights(self, network: nn.Module, checkpoint: Checkpoint, *, strict: bool = True) -> LoadReport:
        """Put a checkpoint's weights into the network.

        Strict loading needs every tensor; otherwise layers whose shape follows from the image size stay as they are.

        Raises: CheckpointError naming the spec keys that differ from the checkpoint's architecture.
        """
        weights = {key: value for key, value in checkpoint.state_dict.items() if key != "criterion.weight"}
        if not any(key.startswith("model.") for key in weights):
            weights = {f"model.{key}": value for key, value in weights.items()}
        if strict:
            ours = isinstance(checkpoint.raw, dict) and "fiducial" in checkpoint.raw
            trained = checkpoint.meta.get("hyper_parameters") if ours else None
            found = list(differences(self.spec, weights, trained))
            if found:
                raise CheckpointError.of(found)
        holder = nn.ModuleDict({"model": network})
        report = load_into(
            holder,
            Checkpoint(checkpoint.path, checkpoint.kind, weights, checkpoint.meta, None),
            key_maps=KEY_MAPS,
            what=str(checkpoint.path),
            strict=strict,
            allow=("model.backbone.norm.*",),  # unused, and absent from files of TAO up to 6.25.7
            size_dependent=() if strict else tuple(f"model.{pattern}" for pattern in SIZE_DEPENDENT),
        )
        LOGGER.info("%s", report.summary())
        return report

    def torch_predictor(self, checkpoint: Checkpoint) -> PairPredictor:
        """A predictor over a checkpoint's weights; takes over the normalisation the checkpoint was trained with."""
        network = self.network()
        self.load_weights(network, checkpoint)
        self.use_normalization_of(checkpoint.raw if isinstance(checkpoint.raw, dict) else {})
        return PairPredictor(
            network, cache_mb=min(self.spec.evaluate.golden_cache_mb, self.spec.inference.golden_cache_mb)
        )

    def use_normalization_of(self, meta: Mapping[str, Any]) -> None:
        """Normalise as the model was trained: by its own record, else by the generation of TAO that wrote it."""
        config, backbone = self.data.augmentation_config, self.spec.model.backbone.type
        recorded = meta.get("fiducial") or {}
        known = Normalization(tuple(recorded["mean"]), tuple(recorded["std"])) if "mean" in recorded else None
        written_with = _version(meta.get("pytorch-lightning_version"))
        clip = self.spec.compat == "off" and written_with >= _FIRST_LIGHTNING_WITH_CLIP
        self.normalization = normalization(config, backbone, recorded=known, clip=clip)
        if known is not None and known != self.normalization:
            LOGGER.warning(
                "images are normalised with mean %s, std %s as the spec says; the model was trained with %s, %s",
                *(list(values) for values in (*astuple(self.normalization), *astuple(known))),
            )
        doubtful = normalization(config, backbone, clip=True) != normalization(config, backbone, clip=False)
        if known is None and doubtful:
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
                "input_1": GraphInput("test", (3, height, width)),
                "input_2": GraphInput("golden", (*goldens, 3, height, width)),
            },
            outputs=("output",),
            batch_axis="batch",
        )

    def metadata(self) -> dict[str, Any]:
        """What an exported model must say of itself so that others prepare its inputs right."""
        return {
            "task": "classify",
            "backbone": self.spec.model.backbone.type,
            "difference_module": self.spec.model.classify.difference_module,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
            "image_height": self.data.image_height,
            "image_width": self.data.image_width,
            "input_map": self.data.input_map,
            "concat_type": "grid" if self.layout.grid else "linear",
            "grid_map": self.data.grid_map,
            "num_golden": self.data.num_golden,
            "align": self.data.align,
            "eval_margin": self.margin,
        }

    def evaluator(self) -> PairEvaluator:
        """Collects scores."""
        return PairEvaluator()

    def write(self, action: str, results: PairResults, folder: Path, facts: Mapping[str, Any]) -> dict[str, float]:
        """Write the files of ``evaluate`` or ``inference``; returns the KPIs of the former."""
        if action == "inference":
            path = write_inference(folder, self.table("infer"), results, self.margin)
            LOGGER.info("scores: %s", path)
            return {}
        report = write_evaluation(folder, self.spec, self.table("test"), results, self.margin, facts)
        LOGGER.info("%s", summary_line(report))
        if report.total.num_defects:
            margin = suggest_margin(results.score, results.label)
            LOGGER.info(
                "the largest eval_margin that misses no defect of this data: %.4g (now %g)", margin, self.margin
            )
        LOGGER.info("report: %s", folder / "report.html")
        return report.kpis("test")

    def facts(self, action: str) -> dict[str, Any]:
        """What the report says about the data."""
        split = "test" if action == "evaluate" else "infer"
        files = getattr(self.data, SPLITS[split])
        return {"csv": files.csv_path, "images": files.images_dir, "backbone": self.spec.model.backbone.type}
