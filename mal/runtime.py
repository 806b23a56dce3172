"""The heavy half of MAL: builds what the shared actions ask for, from a spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fiducial.backbones.hub import resolve_weights
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.data.loaders import ordered_loader
from fiducial.data.picture_cache import picture_cache
from fiducial.deploy.card import ModelCard, TensorCard
from fiducial.errors import CheckpointError, DatasetError, Problem, UserError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Graph, GraphInput
from fiducial.run.console import LOGGER
from fiducial.run.devices import resolve_devices
from fiducial.spec.knob import plain
from fiducial.task import CalibrationData, TaskRuntime
from fiducial.training.module import TrainingPlan
from mal.augment import BoxAugment
from mal.checks import WEIGHTS_KEY
from mal.data import IMAGENET, BoxDataset, BoxReader
from mal.datamodule import BoxData
from mal.evaluator import BoxEvaluator, BoxFiles, Decoding
from mal.lightning import MalModule
from mal.mean_field import MeanField
from mal.model import MaskNetwork, build_labeler
from mal.predictor import BoxLabeler, BoxPredictor
from mal.quality import jittered
from mal.schedule import CosineSchedule, peak_lr
from mal.splits import KEYS, Split, read_split, values_of
from mal.training import Objective
from mal.weights import load_networks, start_from

if TYPE_CHECKING:
    from mal.config import ExperimentSpec

__all__ = ["MalRuntime"]

_USES = {
    "evaluate": {
        "teacher": "use_teacher_test",
        "both": "use_mixed_model_test",
        "flip": "use_flip_test",
        "features": "comp_clustering",
    },
    "inference": {"teacher": "use_teacher", "both": "use_mixed_model", "flip": "use_flip"},
    "export": {"teacher": "use_teacher"},
    "quantize": {"teacher": "use_teacher"},
}
"""What an action may be asked to look at beside the student, and by which key of its section."""


class MalRuntime(TaskRuntime):
    """A runtime for one spec."""

    spec: ExperimentSpec

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec, self.data = spec, spec.dataset
        self.crop_size = spec.dataset.crop_size
        self.decoding = Decoding(margin=0.5 * spec.train.test_margin_rate[0], thresholds=tuple(spec.train.mask_thres))
        self.label_decoding = replace(self.decoding, clip_to_box=spec.inference.clip_to_box)
        self._splits: dict[str, Split] = {}

    def split(self, name: str) -> Split:
        """The annotations and pictures of ``train``, ``val`` or ``infer``, read once."""
        if name not in self._splits:
            self._splits[name] = read_split(self.spec, name)
        return self._splits[name]

    # --- networks -------------------------------------------------------------------------------------------------

    def network(self) -> BoxLabeler:
        return BoxLabeler([self._network()])

    def _network(self) -> MaskNetwork:
        model = self.spec.model
        return build_labeler(
            model.arch,
            hidden=model.mask_head_hidden_channel,
            out_dim=model.mask_head_out_channel,
            num_convs=model.mask_head_num_convs,
            scale=model.mask_scale_ratio,
            scale_before=model.mask_scale_ratio_pre,
            adjust_scale=not model.not_adjust_scale,
            drop_path=model.vit_dpr,
            activation_checkpointing=model.activation_checkpointing,
        )

    def module(self, *, pretrained: bool) -> MalModule:
        spec, train = self.spec, self.spec.train
        student, teacher = self._network(), self._network()
        loaded = self._start(student, teacher) if pretrained else ""
        unknown = student.backbone.freeze_stages(spec.model.frozen_stages) - {-1}
        if unknown:
            LOGGER.warning("model.frozen_stages: the backbone has no stages %s", sorted(unknown))
        peak = peak_lr(train.lr, self._devices_of_a_node(), train.batch_size)
        LOGGER.info("highest learning rate: %g = train.lr x devices x train.batch_size", peak)
        plan = TrainingPlan(card=self.card(), hyper_parameters=plain(spec), weights=loaded)
        return MalModule(
            student,
            teacher,
            plan,
            schedule=CosineSchedule(
                peak, peak * train.min_lr_rate, train.num_epochs, train.warmup_epochs, train.num_wave
            ),
            objective=self._objective(),
            optimizer={"betas": tuple(train.optim_betas), "eps": train.optim_eps, "weight_decay": train.wd},
            momentum=spec.model.teacher_momentum,
            clean_crf=train.crf_image == "clean",
            labeler=self._labeler(student, teacher, "evaluate"),
            evaluators={"val": self.evaluator("val")} if self.data.val_ann_path else {},
        )

    def _start(self, student: MaskNetwork, teacher: MaskNetwork) -> str:
        train, loaded = self.spec.train, ""
        if train.pretrained_model_path:
            path = resolve_weights(train.pretrained_model_path, key=WEIGHTS_KEY)
            loaded = start_from(student, teacher, self._read(path), strict=train.pretrained_strict)
        if self.spec.model.teacher_init == "student":
            teacher.load_state_dict(student.state_dict())
        return loaded

    def _read(self, path: Path, device: str = "cpu") -> Checkpoint:
        return read(path, device=device, key=self.spec.encryption_key, where=WEIGHTS_KEY)

    def check_weights(self, resume: Path | None, pretrained: Path | None) -> Iterator[Problem]:
        """Why weights do not fit: of ``resume``, else ``pretrained``. Nothing but names and shapes is read."""
        with torch.device("meta"):
            student, teacher = self._network(), self._network()
        try:
            if resume is not None:
                load_networks(student, teacher, self._read(resume, "meta"))
            elif pretrained is not None:
                checkpoint = self._read(pretrained, "meta")
                start_from(student, teacher, checkpoint, strict=self.spec.train.pretrained_strict)
        except UserError as error:
            yield from error.problems

    def _objective(self) -> Objective:
        train = self.spec.train
        field = MeanField(
            train.crf_kernel_size,
            train.crf_zeta,
            train.crf_num_iter,
            low=train.crf_value_low_thres,
            high=train.crf_value_high_thres,
        )
        return Objective(
            mil_weight=train.loss_mil_weight,
            crf_weight=train.loss_crf_weight,
            mil_steps=train.loss_mil_step,
            crf_steps=train.loss_crf_step,
            size_ratio=train.crf_size_ratio,
            mean_field=field,
        )

    def _devices_of_a_node(self) -> int:
        devices = resolve_devices(self.spec.train, "train")
        return max(1, devices.num_processes // devices.num_nodes)

    def torch_predictor(self, checkpoint: Checkpoint) -> BoxPredictor:
        student, teacher = self._network(), self._network()
        self.adopt(ModelCard.of_checkpoint(checkpoint))
        LOGGER.info("%s", load_networks(student, teacher, checkpoint).summary())
        return BoxPredictor(self._labeler(student, teacher, self.action))

    def _labeler(self, student: MaskNetwork, teacher: MaskNetwork, action: str) -> BoxLabeler:
        """The networks that an action's keys ask for; validation follows those of ``evaluate``."""
        uses = self._uses(action)
        both = "both" in uses
        chosen, other = (teacher, student) if "teacher" in uses and not both else (student, teacher)
        judged = action == "inference" and self.spec.inference.quality
        return BoxLabeler(
            [student, teacher] if both else [chosen],
            flip="flip" in uses,
            second=BoxLabeler([other]) if judged else None,
            features="features" in uses,
        )

    def _uses(self, action: str) -> dict[str, str]:
        """What the spec asks an action to look at, with the key that asks."""
        section = getattr(self.spec, action)
        return {use: f"{action}.{key}" for use, key in _USES.get(action, {}).items() if getattr(section, key)}

    def checkpoint_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("networks.0.", "student.", 1): tensor for name, tensor in weights.items()}

    # --- data -----------------------------------------------------------------------------------------------------

    def dataset(self, name: str, *, larger: bool = False) -> BoxDataset:
        """The boxes of a split; in training augmented, elsewhere perhaps a little ``larger``."""
        split, train = self.split(name), self.spec.train
        boxes = split.selection.boxes
        if larger:
            pictures = split.annotations.pictures
            boxes = tuple(jittered(box, pictures[box.picture]) for box in boxes)
        reader = BoxReader(
            split.annotations,
            split.images,
            crop_size=self.crop_size,
            margin=self.decoding.margin,
            cache_mb=self.data.image_cache_mb,
            shared=picture_cache(self.data.cache, self.data.cache_mb),
        )
        low, high = train.margin_rate
        augment = BoxAugment() if name == "train" else None
        return BoxDataset(reader, boxes, augment=augment, margins=(low, high), seed=train.seed)

    def datamodule(self) -> BoxData:
        return BoxData(
            self.dataset("train"),
            self.dataset("val") if self.data.val_ann_path else None,
            batch_size=self.spec.train.batch_size,
            workers=self.data.num_workers_per_gpu,
            pool=self.data.shuffle_pool,
        )

    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> list[DataLoader[Any]]:
        name = "infer" if stage == "infer" else "val"
        section = self.spec.inference if stage == "infer" else self.spec.evaluate
        sets = [self.dataset(name)]
        if stage == "infer" and section.quality:  # type: ignore[union-attr]
            sets.append(self.dataset(name, larger=True))
        workers = self.data.num_workers_per_gpu
        return [
            ordered_loader(data, batch_size=section.batch_size, workers=workers, rank=rank, world_size=world_size)
            for data in sets
        ]

    def samples(self, count: int) -> Sequence[Batch]:
        for name in ("val", "infer", "train"):
            try:
                data = self.dataset(name)
                return [BoxDataset(data.reader, data.boxes)[i] for i in range(min(count, len(data)))]
            except UserError:
                continue
        return []

    def calibration(self, folders: Sequence[str] = (), key: str = "") -> CalibrationData:
        if folders:
            fix = "leave it empty: the boxes to train on, or to evaluate with, are taken"
            raise DatasetError(key, f"{', '.join(folders)}: pictures alone have no boxes, which MAL takes, too", fix)
        for name in ("train", "val", "infer"):
            if all(values_of(self.spec, name)):
                data = self.dataset(name)
                LOGGER.info("calibrating with the boxes of %s", KEYS[name][0])
                return CalibrationData(BoxDataset(data.reader, data.boxes), values_of(self.spec, name)[0])
        found = "not set, and neither validation's nor inference's: there is nothing to calibrate with"
        raise DatasetError(" and ".join(KEYS["train"]), found, "name annotations and the folder of their pictures")

    # --- files ----------------------------------------------------------------------------------------------------

    def adopt(self, card: ModelCard) -> None:
        found = card.details.get("crop_size")
        if card.is_exported and found not in (None, self.crop_size):
            said = f"{self.crop_size} in the spec, {found} in the file"
            raise CheckpointError.of([Problem("dataset.crop_size", said, f"set dataset.crop_size={found}")])
        if card.is_exported and (uses := self._uses(self.action)):
            LOGGER.warning("%s: no effect on an exported file, which holds one network", ", ".join(uses.values()))
        if found not in (None, self.crop_size):
            LOGGER.warning("dataset.crop_size: %s in the spec, trained at %s", self.crop_size, found)

    def graph(self) -> Graph:
        side = self.crop_size
        return Graph(
            inputs={
                "image": GraphInput("image", (3, side, side), image=True),
                "boxmask": GraphInput("boxmask", (1, side, side)),
                "area": GraphInput("area", ()),
            },
            outputs=("prob",),
            batch_axis="batch",
        )

    def card(self) -> ModelCard:
        train = self.spec.train
        return ModelCard(
            network="mal",
            task="mal",
            backbone=self.spec.model.arch,
            inputs={name: TensorCard(item.shape) for name, item in self.graph().inputs.items()},
            mean=IMAGENET.mean,
            std=IMAGENET.std,
            threshold=train.mask_thres[0],
            details={
                "crop_size": self.crop_size,
                "test_margin_rate": train.test_margin_rate[0],
                "mask_thres": list(train.mask_thres),
            },
        )

    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> BoxEvaluator:
        split = self.split("infer" if stage == "infer" else "val")
        measured = self.spec.inference.load_mask if stage == "infer" else self.data.load_mask
        return BoxEvaluator(
            stage,
            split.annotations,
            split.selection,
            self.label_decoding if stage == "infer" else self.decoding,
            measured=measured,
            per_batch=self.spec.compat == "tao",
            files=None if folder is None else BoxFiles(folder, self.spec, split.images),
        )
