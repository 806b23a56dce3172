"""Trained models for programs: the parts that every package's ``load`` is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from fiducial.checkpoints.keys import family_of
from fiducial.checkpoints.reading import Checkpoint, read
from fiducial.checkpoints.resolving import resolve_model_file
from fiducial.deploy.card import ENTRY, ModelCard
from fiducial.deploy.kinds import open_predictor, suffixes
from fiducial.deploy.quantize.artefacts import is_quantized
from fiducial.deploy.quantize.loading import read_stored
from fiducial.errors import CheckpointError, SpecError, one_line
from fiducial.prediction import Predictor
from fiducial.spec.compose import Source, compose, read_source
from fiducial.spec.knob import Section
from fiducial.task import Task, TaskRuntime

__all__ = [
    "Where",
    "checkpoint_of",
    "device_of",
    "foreign",
    "model_file",
    "predictor_of",
    "ready",
    "spec_of_export",
    "stored_tree",
]

SpecT = TypeVar("SpecT", bound=Section)
PredictorT = TypeVar("PredictorT", bound=Predictor)
Where = str | torch.device | None


def device_of(wanted: Where) -> str | torch.device:
    """What a user asks for; without a wish a GPU when there is one."""
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def ready(predictor: PredictorT, device: Where, compile: bool) -> PredictorT:
    """A predictor that torch runs where a user wants it, compiled where that is wanted."""
    predictor.module.to(device_of(device))
    if compile:
        predictor.compile()
    return predictor


def model_file(path: str | Path, prefix: str) -> Path:
    """A checkpoint or an exported model, also of a run's folder. Raises: CheckpointError when there is none."""
    return resolve_model_file(path, results_dir=None, prefix=prefix, key="path", suffixes=suffixes()).path


def checkpoint_of(path: Path) -> Checkpoint:
    """A checkpoint, read; the weights of a quantized one as floating-point numbers. Raises: CheckpointError."""
    if not is_quantized(path):
        return read(path)
    return Checkpoint(path, "nested", read_stored(path).weights, {}, {})


def predictor_of(checkpoint: Checkpoint, runtime: TaskRuntime) -> Predictor:
    """What runs a checkpoint that :func:`checkpoint_of` read. Raises: CheckpointError."""
    quantized = is_quantized(checkpoint.path)
    return open_predictor(checkpoint.path, runtime) if quantized else runtime.torch_predictor(checkpoint)


def foreign(checkpoint: Checkpoint, title: str, fix: str) -> CheckpointError:
    """The error for a checkpoint of another network, which is named where it is known."""
    return CheckpointError(str(checkpoint.path), f"{family_of(checkpoint.state_dict)}, no {title}", fix)


def stored_tree(
    task: Task[Any], checkpoint: Checkpoint, given: str | Path | None, overrides: Collection[str] = ()
) -> dict[str, Any]:
    """The spec that a checkpoint was trained with: ``given``, in the file, or in the ``experiment.yaml`` beside it.

    Raises: CheckpointError when it cannot be told; SpecError when it cannot be read.
    """
    stored = checkpoint.meta.get("hyper_parameters") if ENTRY in checkpoint.raw else None
    beside = checkpoint.path.resolve().parent / "experiment.yaml"
    if given is None and isinstance(stored, Mapping) and "model" in stored:
        return dict(stored)
    if given is None and not beside.is_file():
        found = "does not say what it was trained with"
        raise CheckpointError(str(checkpoint.path), found, "give spec=, the training's YAML file")
    source = beside if given is None else Path(given)
    return read_source(task.spec_model(), source, list(overrides), unwrap=task.unwrap).tree


def spec_of_export(
    kind: type[SpecT], path: Path, tasks: Collection[str], tree_of: Callable[[ModelCard], dict[str, Any]], fix: str
) -> tuple[SpecT, ModelCard]:
    """The spec for an exported model of one of these tasks, by its card, and the card.

    ``tree_of`` raises KeyError for a card that says too little, and ValueError for one that says what cannot be.
    Raises: CheckpointError when it does, for a model of another task, or for what the spec does not allow.
    """
    card = ModelCard.read(path)
    if card.task not in tasks:
        found = "does not say how its inputs are prepared" if not card.task else f"a model of task {card.task}"
        raise CheckpointError(str(path), found, fix)
    try:
        return compose(kind, Source(tree_of(card))).spec, card
    except KeyError as error:
        raise CheckpointError(str(path), f"its model card lacks {error}", "export the model again") from None
    except (SpecError, TypeError, ValueError) as error:  # what it says is of another kind, or beyond the spec's bounds
        found = f"its model card says what cannot be: {one_line(str(error))}"
        raise CheckpointError(str(path), found, "export the model again") from None
