"""From pictures to what a gallery keeps of them: who they are, and the embeddings that a model gives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import PIL
import torch
from torch import Tensor

from fiducial.actions.models import open_model
from fiducial.data.cache import digest
from fiducial.data.checks import shortened
from fiducial.data.images import check_whole
from fiducial.data.loaders import ordered_loader
from fiducial.data.looks import Look, Wrong, look_at
from fiducial.data.remote import is_remote
from fiducial.data.sources import local_path
from fiducial.deploy.card import ModelCard, weights_hash
from fiducial.deploy.graph_predictor import GraphPredictor
from fiducial.deploy.kinds import open_predictor
from fiducial.deploy.quantize.artefacts import is_quantized
from fiducial.errors import CheckpointError, DatasetError, Problem
from fiducial.prediction import Predictor
from fiducial.progress import followed
from fiducial.redact import public_url
from mlrecog.data import ClassImages
from mlrecog.folders import SUFFIXES, Sample, is_image, read_class_folders, read_class_map
from mlrecog.gallery_base import Part
from mlrecog.gallery_card import ModelFacts
from mlrecog.gallery_table import Entry
from mlrecog.predictor import EMBEDDING
from mlrecog.splits import CLASS_MAP
from mlrecog.transforms import EvalTransform

if TYPE_CHECKING:
    from fiducial.run.run import Run
    from fiducial.task import Task
    from mlrecog.config import ExperimentSpec

__all__ = ["EmbeddingModel", "Picture", "model_facts", "open_embedder", "read_labelled", "read_queries"]

SOURCE, QUERY = "gallery.source", "gallery.query"


class Picture(NamedTuple):
    """A file, and how a gallery calls it."""

    path: Path
    entry: Entry


def read_labelled(spec: ExperimentSpec) -> list[Picture]:
    """The pictures of ``gallery.source``: of class folders, or all of ``gallery.label``; each is whole.

    Raises: UserError naming what is missing, and every picture that cannot be read.
    """
    section = spec.gallery
    value = section.source or ""
    if section.label:
        root = local_path(value, key=SOURCE)
        labelled = [(path, section.label) for path in _below(root, SOURCE)]
    else:
        folders = read_class_folders(value, key=SOURCE)
        if spec.dataset.class_map:
            names = read_class_map(spec.dataset.class_map, key=CLASS_MAP, classes=folders.classes)
            folders = folders.shown_as(names)
        root = local_path(value, key=SOURCE)
        labelled = [(sample.path, folders.name(sample.label)) for sample in folders.samples]
    return _looked_at([Picture(path, Entry(label, _name(value, root, path))) for path, label in labelled])


def read_queries(spec: ExperimentSpec) -> list[Picture]:
    """The picture of ``gallery.query``, or those of a folder. Raises: UserError as :func:`read_labelled`."""
    value = spec.gallery.query or ""
    root = local_path(value, key=QUERY)
    return _looked_at([Picture(path, Entry("", _name(value, root, path))) for path in _below(root, QUERY)])


def _below(root: Path, key: str) -> list[Path]:
    """The file itself, or every picture of a folder and those in it."""
    if not root.is_dir():
        return [root]
    found = sorted(path for path in root.rglob("*") if is_image(path.name) and path.is_file())
    if not found:
        raise DatasetError(key, f"no picture in {root}", f"pictures end in {', '.join(SUFFIXES)}")
    return found


def _name(value: str, root: Path, path: Path) -> str:
    """A picture by the place that the user named, which stays what a cache is not."""
    inner = path.relative_to(root) if path.is_relative_to(root) else path
    base = public_url(value).partition("?")[0] if is_remote(value) else os.path.abspath(os.path.expanduser(value))
    return base if inner == Path() else f"{base.rstrip('/')}/{inner.as_posix()}"


def _looked_at(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures with the SHA-256 of their files. Raises: DatasetError naming those that cannot be read."""
    found: list[Picture] = []
    problems: list[Problem] = []
    for picture, seen in zip(pictures, look_at(_WHOLE, [picture.path for picture in pictures]), strict=True):
        if isinstance(seen, Wrong):
            problems.extend(seen.problems)
        else:
            found.append(Picture(picture.path, Entry(picture.entry.label, picture.entry.source, seen)))
    if problems:
        raise DatasetError.of(shortened(problems))
    return found


def _hash_of_whole(path: Path) -> str:
    check_whole(path)
    try:
        return digest(path)
    except OSError as error:
        raise DatasetError(str(path), f"cannot be read ({error})", "copy it again") from error


_WHOLE: Look[str] = Look(f"whole, sha256 1, Pillow {PIL.__version__}", _hash_of_whole, str, str)
"""SHA-256 of the file of a whole picture, kept until the file changes."""


@dataclass(frozen=True)
class EmbeddingModel:
    """A model that embeds pictures, prepared as in its training."""

    predictor: Predictor
    facts: ModelFacts
    transform: EvalTransform

    @classmethod
    def of(cls, predictor: Predictor, runtime: Any, file: Path) -> EmbeddingModel:
        """Of a predictor of ``file``, whose card the task's ``runtime`` has adopted."""
        if predictor.network is not None and torch.cuda.is_available():
            predictor.network.to("cuda")
        transform = EvalTransform(runtime.size, runtime.normalize)
        return cls(predictor, model_facts(predictor, runtime, file), transform)

    def parts(self, pictures: Sequence[Picture], *, batch_size: int, workers: int) -> Iterator[Part]:
        """Their embeddings, a batch at a time; it says how far it is."""
        images = ClassImages([Sample(picture.path, -1) for picture in pictures], self.transform)
        loader = ordered_loader(images, batch_size=batch_size, workers=workers)
        for batch in followed(loader, "embedding, batches", total=len(loader)):
            entries = [pictures[place].entry for place in batch["place"].tolist()]
            moved = {**batch, "image": batch["image"].to(self.predictor.device)}
            embeddings_BD = self.predictor.predict(moved)[EMBEDDING].float().cpu()
            if embeddings_BD.ndim != 2:
                found = f"gives {tuple(embeddings_BD.shape)} for {len(entries)} pictures"
                raise CheckpointError(self.facts.file, found, "give a model that embeds pictures")
            yield Part(entries, embeddings_BD)

    def embed(self, pictures: Sequence[Picture], *, batch_size: int, workers: int) -> Tensor:
        """``(N, D)`` at once."""
        return torch.cat([part.embeddings_ND for part in self.parts(pictures, batch_size=batch_size, workers=workers)])


def open_embedder(task: Task[Any], run: Run) -> EmbeddingModel:
    """The model of ``gallery.checkpoint``: a checkpoint, or an ONNX file. Raises: CheckpointError."""
    file = open_model(task, run)
    runtime: Any = task.runtime(run.spec)
    return EmbeddingModel.of(open_predictor(file, runtime, run.spec.encryption_key), runtime, file)


def model_facts(predictor: Predictor, runtime: Any, file: Path) -> ModelFacts:
    """What a gallery keeps of a model; the same for a checkpoint and what was exported or quantized from it.

    ``runtime``: the task's (:class:`mlrecog.runtime.RecogRuntime`), which has adopted the card of ``file``.
    """
    card: ModelCard = runtime.card()
    backbone = card.backbone
    if is_quantized(file):
        weights = ModelCard.beside(file).weights or digest(file)
    elif predictor.network is not None:
        weights = weights_hash(predictor.network.state_dict())
    elif isinstance(predictor, GraphPredictor):
        backbone, weights = predictor.card.backbone, predictor.card.weights
    else:
        weights = digest(file)
    return ModelFacts(weights, runtime.size, card.mean, card.std, backbone=backbone, file=file.name)
