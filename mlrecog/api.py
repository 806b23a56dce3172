"""The package as a library: trained recognizers (:func:`load`), and actions as a function (:func:`run`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fiducial.actions.perform import perform
from fiducial.actions.result import Result
from fiducial.data.pictures import Picture, as_rgb
from fiducial.deploy.card import ModelCard
from fiducial.deploy.kinds import open_predictor, runtime_of
from fiducial.errors import SpecError
from fiducial.library import (
    Where,
    checkpoint_of,
    foreign,
    model_file,
    predictor_of,
    ready,
    spec_of_export,
    stored_tree,
)
from fiducial.prediction import Predictor
from fiducial.spec.compose import Source, compose
from mlrecog.config import ExperimentSpec
from mlrecog.gallery import UNKNOWN, AnyGallery, Gallery, open_gallery
from mlrecog.gallery_card import ModelFacts
from mlrecog.gallery_embed import model_facts
from mlrecog.neighbours import unit
from mlrecog.predictor import EMBEDDING
from mlrecog.runtime import RecogRuntime
from mlrecog.task import ML_RECOG
from mlrecog.transforms import EvalTransform
from mlrecog.trunks import TRUNKS
from mlrecog.weights import embedding_dim_of

_ONE = (str, Path, Image.Image, np.ndarray)
"""What :data:`~fiducial.data.pictures.Picture` is, for isinstance."""

__all__ = ["Match", "Recognition", "TrainedRecognizer", "load", "run"]


@dataclass(frozen=True)
class Match:
    """A picture of the gallery. ``distance``: squared, of unit embeddings: 0 the same, 2 unrelated, 4 opposite."""

    label: str
    distance: float
    source: str


@dataclass(frozen=True)
class Recognition:
    """What a picture was taken for. ``label`` is ``unknown`` where it is of no class; ``matches``, nearest first."""

    label: str
    matches: tuple[Match, ...]

    @property
    def is_known(self) -> bool:
        """Whether it is of a class of the gallery."""
        return self.label != UNKNOWN


class TrainedRecognizer:
    """A trained model with the preprocessing it was trained with. Make one with :func:`mlrecog.load`."""

    def __init__(self, runtime: RecogRuntime, predictor: Predictor, path: Path) -> None:
        self._runtime, self._predictor, self._path = runtime, predictor, path
        self._known: tuple[Any, ModelFacts] | None = None

    @property
    def spec(self) -> ExperimentSpec:
        """The spec the model was trained with."""
        return self._runtime.spec

    @property
    def network(self) -> nn.Module:
        """The plain network, in evaluation mode. Raises: ValueError for an exported model, which has none."""
        return self._predictor.module

    def __repr__(self) -> str:
        height, width = self._runtime.size
        what = f"{self.spec.model.backbone}, pictures of {width} x {height}"
        return f"<TrainedRecognizer: {what}, {self._predictor.runtime} on {self._predictor.device}>"

    def embed(self, images: Picture | Iterable[Picture], *, batch_size: int = 32) -> Tensor:
        """Unit embeddings ``(N, D)``, float32 on the CPU, of pictures: paths, PIL images or RGB arrays; also of one.

        Raises: DatasetError for a picture that cannot be read.
        """
        pictures = _listed(images)
        transform = EvalTransform(self._runtime.size, self._runtime.normalize)
        found = []
        for start in range(0, len(pictures), batch_size):
            batch = torch.stack([transform(as_rgb(picture)) for picture in pictures[start : start + batch_size]])
            found.append(self._predictor.predict({"image": batch.to(self._predictor.device)})[EMBEDDING].float().cpu())
        return unit(torch.cat(found)) if found else torch.zeros(0, 0)

    def search(
        self,
        images: Picture | Iterable[Picture],
        gallery: str | Path | AnyGallery,
        k: int = 5,
        *,
        threshold: float | None = None,
        margin: float | None = None,
    ) -> list[Recognition]:
        """What each picture is, by its ``k`` nearest in a gallery that ``mlrecog gallery`` keeps.

        ``threshold`` and ``margin`` decide that a picture is of no class; None takes the gallery's own.
        Raises: CheckpointError when the gallery was built with another model; DatasetError when there is none, or for a
        picture that cannot be read.
        """
        kept = gallery if isinstance(gallery, AnyGallery) else open_gallery(str(gallery))
        if kept.card.model.weights:
            kept.card.check(self._facts(), kept.path)
        embeddings_QD = self.embed(images)
        if not len(embeddings_QD):
            return []
        found = kept.search(embeddings_QD, k)
        card = kept.card.deciding(threshold, margin)
        decisions = found.decisions(card.threshold, card.margin)
        rows = zip(decisions, found.labels, found.distances_Qk.tolist(), found.sources, strict=True)
        return [
            Recognition(decision, tuple(map(Match, labels, distances, sources)))
            for decision, labels, distances, sources in rows
        ]

    def _facts(self) -> ModelFacts:
        """What a gallery knows a model by; the weights are read again only after they have changed."""
        network = self._predictor.network
        weights = network.state_dict().values() if network is not None else ()
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in weights)
        if self._known is None or self._known[0] != state:
            self._known = state, model_facts(self._predictor, self._runtime, self._path)
        return self._known[1]

    def gallery(self, pictures: Mapping[str, Picture | Iterable[Picture]]) -> Gallery:
        """A gallery in memory, of some pictures of each class, or one. Raises: DatasetError as :meth:`embed`."""
        labelled = [(label, picture) for label, of_class in pictures.items() for picture in _listed(of_class)]
        labels, everything = [label for label, _ in labelled], [picture for _, picture in labelled]
        sources = [str(picture) if isinstance(picture, str | Path) else "" for picture in everything]
        return Gallery.of_folders(labels, sources, self.embed(everything))


def load(
    path: str | Path, *, spec: str | Path | None = None, device: Where = None, compile: bool = False
) -> TrainedRecognizer:
    """Load a trained recognizer.

    ``path``: a run's results folder, a checkpoint (this project's or TAO's), or an exported model. ``spec``:
    the training's YAML; only needed for TAO checkpoints that have no ``experiment.yaml`` beside them. ``device``: where
    torch runs it, a GPU when there is one. ``compile``: a checkpoint's network for this machine, at its first use: it
    takes minutes once, and seconds at later starts.

    Raises: CheckpointError when there is no such model, it is damaged or unsafe, or what it is cannot be told;
        SpecError for a spec of no network.
    """
    found = model_file(path, ML_RECOG.prefix)
    if runtime_of(found).name != "torch":
        fix = "export it with `mlrecog export`"
        spec_of_file, _ = spec_of_export(ExperimentSpec, found, (ML_RECOG.name,), _tree_of, fix)
        runtime = ML_RECOG.runtime(spec_of_file)
        return TrainedRecognizer(runtime, open_predictor(found, runtime), found)
    checkpoint = checkpoint_of(found)
    if embedding_dim_of(checkpoint) is None:
        raise foreign(checkpoint, "ML Recog", "give what `mlrecog train` wrote")
    trained_with = compose(ExperimentSpec, Source(stored_tree(ML_RECOG, checkpoint, spec))).spec
    if wrong := [problem for problem in ML_RECOG.check_spec(trained_with, "evaluate") if problem.level == "error"]:
        raise SpecError.of(wrong)
    runtime = ML_RECOG.runtime(trained_with)
    predictor = ready(predictor_of(checkpoint, runtime), device, compile)
    return TrainedRecognizer(runtime, predictor, found)


def run(action: str, spec: str | Path | Mapping[str, Any], *overrides: str) -> Result:
    """Run an action (``train``, ``evaluate``, ``inference``, ``export``) as its command does.

    ``spec``: a YAML file, or its content; ``overrides`` in Hydra's grammar: ``train.num_epochs=3``.

    Raises: UserError naming every problem of the spec and its files; whatever else the action raises.
    """
    return perform((ML_RECOG,), action, spec, overrides)


def _listed(images: Picture | Iterable[Picture]) -> list[Picture]:
    return [images] if isinstance(images, _ONE) else list(images)


def _tree_of(card: ModelCard) -> dict[str, Any]:
    height, width = card.details["image_size"]
    if card.backbone not in TRUNKS:
        raise ValueError(f"a backbone {card.backbone!r}")
    return {
        "model": {"backbone": card.backbone, "input_width": width, "input_height": height},
        "dataset": {"pixel_mean": list(card.mean), "pixel_std": list(card.std)},
    }
