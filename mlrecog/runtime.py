"""The heavy half of ML Recog: builds what the shared actions ask for, from a spec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from fiducial.backbones.hub import resolve_weights
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.data.loaders import ordered_loader
from fiducial.data.normalization import Normalization
from fiducial.data.picture_cache import PictureCache, picture_cache
from fiducial.deploy.card import ModelCard, TensorCard, weights_hash
from fiducial.errors import CheckpointError, Problem, UserError
from fiducial.metric_table import Stage
from fiducial.prediction import Batch, Graph, GraphInput
from fiducial.run.console import LOGGER
from fiducial.spec.knob import plain
from fiducial.task import CalibrationData, TaskRuntime
from fiducial.training.module import TrainingPlan
from mlrecog.checks import PRETRAINED
from mlrecog.data import ClassImages
from mlrecog.datamodule import RecogData
from mlrecog.evaluator import RecogEvaluator, RecogFiles
from mlrecog.gallery import AnyGallery, ModelFacts, open_gallery
from mlrecog.lightning import RecogModule
from mlrecog.losses import TripletObjective
from mlrecog.model import Recognizer, build_recognizer
from mlrecog.optimizers import PartOptimizer
from mlrecog.predictor import EMBEDDING, Embedder
from mlrecog.results import Labelled
from mlrecog.schedule import warmup_steps_factor
from mlrecog.splits import (
    Sides,
    cached_as,
    named,
    read_calibration,
    read_inputs,
    read_reference,
    read_sides,
    read_train,
)
from mlrecog.transforms import Blur, EvalTransform, TrainTransform
from mlrecog.trunks import TRUNKS
from mlrecog.weights import embedding_dim_of, load_network, start_from

if TYPE_CHECKING:
    from mlrecog.config import ExperimentSpec, PartSection

__all__ = ["RecogRuntime"]


class RecogRuntime(TaskRuntime):
    """A runtime for one spec."""

    spec: ExperimentSpec

    def __init__(self, spec: ExperimentSpec) -> None:
        self.spec, self.data = spec, spec.dataset
        self.normalize = Normalization(tuple(self.data.pixel_mean), tuple(self.data.pixel_std))  # type: ignore[arg-type]
        model = spec.model
        # TAO-compat: TAO gives width and height where height and width are expected
        swapped = spec.compat == "tao"
        self.size = (model.input_width, model.input_height) if swapped else (model.input_height, model.input_width)
        info = TRUNKS[model.backbone]
        self._weights = ""
        # TAO-compat: its dual head has the trunk's width, whatever the spec says
        self.feat_dim = None if swapped and not info.has_linear_head else model.feat_dim

    # --- networks -------------------------------------------------------------------------------------------------

    def network(self) -> Recognizer:
        model = self.spec.model
        return build_recognizer(
            model.backbone,
            feat_dim=self.feat_dim,
            image_size=self.size,
            activation_checkpointing=model.activation_checkpointing,
        )

    def module(self, *, pretrained: bool) -> RecogModule:
        spec, train, optim = self.spec, self.spec.train, self.spec.train.optim
        network = self.network()
        loaded = self._start(network) if pretrained else ""
        schedule = partial(
            warmup_steps_factor,
            steps=optim.steps,
            gamma=optim.gamma,
            warmup_factor=optim.warmup_factor,
            warmup_iters=optim.warmup_iters,
            method=optim.warmup_method,
        )
        # TAO-compat: nobody steps TAO's schedules, so that the rates stay those of epoch 0
        factor = (lambda epoch: schedule(0)) if spec.compat == "tao" else schedule
        self._tell_rates(factor)
        parts = {"trunk": train.train_trunk, "embedder": train.train_embedder}
        plan = TrainingPlan(card=self.card(), hyper_parameters=plain(spec), weights=loaded)
        return RecogModule(
            network,
            plan,
            objective=TripletObjective(
                optim.triplet_loss_margin, optim.miner_function_margin, smooth=train.smooth_loss
            ),
            trunk=_optimizer(optim.name, optim.trunk),
            embedder=_optimizer(optim.name, optim.embedder),
            factor=factor,
            frozen=tuple(part for part, trained in parts.items() if not trained),
            # TAO-compat: batch norms of a frozen part go on following the batches
            still=spec.compat != "tao",
            normalize=self.normalize,
            evaluators={"val": self.evaluator("val")} if self.validates else {},
        )

    def _tell_rates(self, factor: Any) -> None:
        optim, last = self.spec.train.optim, self.spec.train.num_epochs - 1
        epochs = sorted({0, min(optim.warmup_iters, last), last})
        for part, settings in (("trunk", optim.trunk), ("embedder", optim.embedder)):
            said = ", ".join(f"{settings.base_lr * factor(epoch):.3g} in epoch {epoch}" for epoch in epochs)
            LOGGER.info("learning rate of the %s: %s", part, said)

    def _start(self, network: Recognizer) -> str:
        found = self._pretrained(lambda value, key: resolve_weights(value, key=key))
        said = start_from(network, **found) if found else ""
        for part in said.split(" · ") if said else ():
            LOGGER.info("%s", part)
        return said

    def _pretrained(self, resolve: Any, device: str = "cpu") -> dict[str, Checkpoint]:
        """The checkpoints that the spec begins with, by part. ``resolve``: (value, key) to a file, None to skip it.

        Raises: UserError naming all that is wrong.
        """
        found: dict[str, Checkpoint] = {}
        problems: list[Problem] = []
        for key in PRETRAINED:
            name = key.removeprefix("model.")
            value = getattr(self.spec.model, name)
            try:
                path = resolve(value, key) if value else None
                if path is not None:
                    part = name.removeprefix("pretrained_").removesuffix("_path")
                    found[part] = read(path, device=device, key=self.spec.encryption_key, where=key)
            except UserError as error:
                problems.extend(error.problems)
        if problems:
            raise CheckpointError.of(problems)
        return found

    def check_weights(self, resume: Path | None, resolve: Any) -> Iterator[Problem]:
        """Why weights do not fit: of ``resume``, else those to begin with. Nothing but names and shapes is read."""
        with torch.device("meta"):
            network = self.network()
        try:
            if resume is not None:
                load_network(network, read(resume, device="meta", key=self.spec.encryption_key))
            elif found := self._pretrained(resolve, "meta"):
                start_from(network, **found)
        except UserError as error:
            yield from error.problems

    def torch_predictor(self, checkpoint: Checkpoint) -> Embedder:
        self.adopt(ModelCard.of_checkpoint(checkpoint))
        if (width := embedding_dim_of(checkpoint)) is not None and width != self.feat_dim:
            if self.feat_dim is not None:
                LOGGER.warning("model.feat_dim: %d in the spec, %d in the checkpoint", self.feat_dim, width)
            self.feat_dim = width
        network = self.network()
        LOGGER.info("%s", load_network(network, checkpoint).summary())
        if self.spec.inference.gallery and not self._weights:  # those of a quantized one its card knows
            self._weights = weights_hash(network.state_dict())
        return Embedder(network)

    # --- data -----------------------------------------------------------------------------------------------------

    @property
    def validates(self) -> bool:
        """Whether there is a gallery and queries to validate on."""
        return bool(self.data.val_dataset.reference and self.data.val_dataset.query)

    @cached_property
    def sides(self) -> Sides:
        """Gallery and queries, listed once."""
        return read_sides(self.spec)

    @cached_property
    def looked_up(self) -> tuple[Labelled, ...]:
        """What inference embeds: the gallery's pictures, unless a kept one is searched, then the inputs."""
        found = read_inputs(self.spec)
        inputs = Labelled("inputs", found.samples, (), cached_as(self.spec.inference.input_path, found.root))
        if self.spec.inference.gallery:
            return (inputs,)
        gallery = named(self.spec, read_reference(self.spec))
        cached = cached_as(self.data.val_dataset.reference, gallery.root)
        return Labelled("gallery", gallery.samples, gallery.names, cached), inputs

    def images(self, stage: Stage) -> list[ClassImages]:
        """The data sets that a stage goes through, in order."""
        transform = EvalTransform(self.size, self.normalize)
        if stage == "infer":
            return [ClassImages(part.samples, transform, shared=self._shared()) for part in self.looked_up]
        sides = (self.sides.gallery, self.sides.queries)
        return [ClassImages(side.samples, transform, shared=self._shared()) for side in sides]

    def _shared(self) -> PictureCache | None:
        return picture_cache(self.data.cache, self.data.cache_mb)

    def datamodule(self) -> RecogData:
        train, data = self.spec.train, self.data
        colors, blur = data.color_augmentation, data.gaussian_blur
        transform = TrainTransform(
            self.size,
            self.normalize,
            scale=(data.crop_scale[0], data.crop_scale[1]),
            flip=data.prob,
            rotation=data.random_rotation,
            colors=(colors.brightness, colors.contrast, colors.saturation, colors.hue) if colors.enabled else None,
            blur=Blur((blur.kernel[0], blur.kernel[1]), (blur.sigma[0], blur.sigma[1])) if blur.enabled else None,
            erased=data.re_prob,
        )
        return RecogData(
            ClassImages(read_train(self.spec).samples, transform, shared=self._shared(), seed=train.seed),
            self.images("val") if self.validates else [],
            batch_size=train.batch_size,
            per_class=data.num_instance,
            val_batch_size=train.val_batch_size,
            workers=data.workers,
        )

    def loaders(self, stage: Stage, *, rank: int = 0, world_size: int = 1) -> list[DataLoader[Any]]:
        section = self.spec.inference if stage == "infer" else self.spec.evaluate
        return [
            ordered_loader(
                images,
                batch_size=section.batch_size,
                workers=self.data.workers,
                rank=rank,
                world_size=world_size,
            )
            for images in self.images(stage)
        ]

    def samples(self, count: int) -> Sequence[Batch]:
        stages: tuple[Stage, ...] = ("val", "infer")
        for stage in stages:
            try:
                found = self.images(stage)[-1]
                return [found[i] for i in range(min(count, len(found)))]
            except UserError:
                continue
        return []

    def calibration(self, folders: Sequence[str] = (), key: str = "") -> CalibrationData:
        found = read_calibration(self.spec, folders, key)
        return CalibrationData(ClassImages(found.samples, EvalTransform(self.size, self.normalize)), str(found.root))

    # --- files ----------------------------------------------------------------------------------------------------

    def _kept(self) -> AnyGallery | None:
        """The gallery that inference searches. Raises: CheckpointError when it was built with another model."""
        path = self.spec.inference.gallery
        if not path:
            return None
        kept = open_gallery(path)
        card = self.card()
        kept.card.check(ModelFacts(self._weights, self.size, card.mean, card.std, backbone=card.backbone), path)
        return kept

    def adopt(self, card: ModelCard) -> None:
        self._weights = card.weights
        if not card.mean:
            return
        trained = Normalization.of(card)
        if trained != self.normalize:
            LOGGER.warning(
                "dataset.pixel_mean and pixel_std: the model's own are used, %s and %s", list(card.mean), list(card.std)
            )
            self.normalize = trained
        found = tuple(card.details.get("image_size") or self.size)
        if found == self.size:
            return
        if card.is_exported:
            said = f"{self.size[1]} x {self.size[0]} in the spec, {found[1]} x {found[0]} in the file"
            fix = f"set model.input_width={found[1]} model.input_height={found[0]}"
            raise CheckpointError.of([Problem("model.input_width", said, fix)])
        LOGGER.warning("model.input_width, input_height: trained at %d x %d", found[1], found[0])

    def graph(self) -> Graph:
        image = GraphInput("image", (3, *self.size), image=True)
        return Graph(inputs={"input": image}, outputs=(EMBEDDING,), batch_axis="batch")

    def card(self) -> ModelCard:
        return ModelCard(
            network="ml_recog",
            task="mlrecog",
            backbone=self.spec.model.backbone,
            inputs={name: TensorCard(item.shape) for name, item in self.graph().inputs.items()},
            mean=self.normalize.mean,
            std=self.normalize.std,
            details={"image_size": list(self.size)},
        )

    def evaluator(self, stage: Stage, *, folder: Path | None = None) -> RecogEvaluator:
        files = None if folder is None else RecogFiles(folder, self.spec)
        if stage == "infer":
            return RecogEvaluator(
                stage, self.looked_up, kept=self._kept(), engine=self.spec.inference.search, files=files
            )
        sides = [
            Labelled(name, side.samples, side.names, cached_as(value, side.root))
            for name, side, value in (
                ("gallery", self.sides.gallery, self.data.val_dataset.reference),
                ("queries", self.sides.queries, self.data.val_dataset.query),
            )
        ]
        section = self.spec.evaluate if stage == "test" else self.spec.train
        return RecogEvaluator(
            stage,
            sides,
            same=self.sides.same,
            by_class=section.report_accuracy_per_class,
            clustering=stage != "test" or self.spec.evaluate.clustering,
            engine=self.spec.evaluate.search if stage == "test" else "torch",
            files=files,
        )


def _optimizer(name: str, part: PartSection) -> PartOptimizer:
    return PartOptimizer(
        name, part.base_lr, part.bias_lr_factor, part.momentum, part.weight_decay, part.weight_decay_bias
    )
