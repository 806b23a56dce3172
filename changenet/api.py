"""Trained models as a library: :func:`load`, and what both tasks' interfaces share.

The interfaces themselves are :class:`changenet.classify.api.Inspector` and
:class:`changenet.segment.api.ChangeDetector`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import fiducial.task
from changenet.architecture import task_of
from changenet.classify.task import CLASSIFY
from changenet.config import ExperimentSpec
from changenet.segment.task import SEGMENT
from fiducial.checkpoints.reading import read
from fiducial.checkpoints.resolving import CHECKPOINT_SUFFIXES, resolve_model_file
from fiducial.data.images import read_rgb, to_rgb
from fiducial.deploy.predictors import METADATA, OnnxPredictor
from fiducial.errors import CheckpointError, DatasetError
from fiducial.spec.compose import Source, compose, read_source

if TYPE_CHECKING:
    from changenet.classify.api import Inspector
    from changenet.segment.api import ChangeDetector
    from fiducial.task import Predictor

__all__ = ["Picture", "as_rgb", "device_of", "load"]

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file, a PIL image, or a uint8 array ``(H, W, 3)`` RGB or ``(H, W)`` grey, 0..255."""

_TASKS = {task.name: task for task in (CLASSIFY, SEGMENT)}
_INTERFACES = {"classify": "changenet.classify.api:Inspector", "segment": "changenet.segment.api:ChangeDetector"}


def load(
    path: str | Path, *, spec: str | Path | None = None, device: str | torch.device | None = None
) -> Inspector | ChangeDetector:
    """Load a trained model: an ``Inspector`` for task classify, a ``ChangeDetector`` for task segment.

    ``path``: a run's results folder, a checkpoint (this project's or TAO's), or an exported ``.onnx`` file. ``spec``:
    the training's YAML; only needed for TAO checkpoints that have no ``experiment.yaml`` beside them. ``device``: where
    torch runs it, a GPU when there is one.

    Raises: CheckpointError when there is no such model, it is damaged or unsafe, or what it is cannot be told.
    """
    found = resolve_model_file(
        path, results_dir=None, prefix=_prefix_in(Path(path)), key="path", suffixes=(*CHECKPOINT_SUFFIXES, ".onnx")
    ).path
    if found.suffix.lower() == ".onnx":
        about = _about_onnx(found)
        interface = fiducial.task.load(_INTERFACES[about["task"]])
        runtime = _runtime(about["task"], interface.spec_of(about))
        return interface(runtime, OnnxPredictor(found, runtime))  # type: ignore[no-any-return]
    checkpoint = read(found)
    task = task_of(checkpoint.state_dict)
    if task is None:
        raise CheckpointError(str(found), "no Visual ChangeNet", "give a checkpoint of task classify or segment")
    stored = checkpoint.meta.get("hyper_parameters") if "fiducial" in checkpoint.raw else None
    runtime = _runtime(task, _spec_tree(found, stored, spec, task))
    predictor = runtime.torch_predictor(checkpoint)
    predictor.network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return fiducial.task.load(_INTERFACES[task])(runtime, predictor)  # type: ignore[no-any-return]


def as_rgb(picture: Picture) -> Image.Image:
    """A picture as 8-bit RGB. Raises: DatasetError when it cannot be read, or is an array of another kind."""
    if isinstance(picture, (str, Path)):
        return read_rgb(picture)
    if isinstance(picture, np.ndarray):
        is_picture = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not is_picture or not picture.size:
            found = f"{picture.dtype} array of shape {picture.shape}"
            raise DatasetError("image", found, "give uint8 (H, W, 3) RGB or (H, W) grey")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise DatasetError("image", f"{type(picture).__name__}", "give a path, a PIL image or a uint8 array")
    return to_rgb(picture)


def device_of(predictor: Predictor) -> torch.device:
    """Where a predictor wants its inputs: beside its weights, where it runs in torch."""
    network = getattr(predictor, "network", torch.nn.Module())
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))


def _prefix_in(folder: Path) -> str:
    """First part of the checkpoints' names, of the task that was trained in a folder."""
    folders = (folder.expanduser() / "train", folder.expanduser())
    found = (task.prefix for task in _TASKS.values() if any(any(f.glob(f"{task.prefix}_*")) for f in folders))
    return next(found, CLASSIFY.prefix)


def _runtime(task: str, tree: dict[str, Any]) -> Any:
    return fiducial.task.load(_TASKS[task].runtime)(compose(ExperimentSpec, Source(tree)).spec)


def _spec_tree(path: Path, stored: Any, spec: str | Path | None, task: str) -> dict[str, Any]:
    beside = path.resolve().parent / "experiment.yaml"
    if spec is not None:
        return read_source(ExperimentSpec, Path(spec), [f"task={task}"]).tree
    if isinstance(stored, Mapping) and "model" in stored:
        return dict(stored)
    if beside.is_file():
        return read_source(ExperimentSpec, beside, [f"task={task}"]).tree
    raise CheckpointError(str(path), "does not say what it was trained with", "give spec=, the training's YAML file")


def _about_onnx(path: Path) -> dict[str, Any]:
    """What an exported model says of itself."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise CheckpointError(str(path), f"not an ONNX file: {error}", "export the model again") from None
    said = {item.key: item.value for item in model.metadata_props}
    if METADATA not in said:
        found = "does not say how its inputs are prepared"
        raise CheckpointError(str(path), found, "export it with `changenet export`")
    about: dict[str, Any] = json.loads(said[METADATA])
    return about
