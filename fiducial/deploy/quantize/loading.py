"""Opening a quantized checkpoint: ours, with its card beside it, or TAO's.

The task loads the weights as floating-point numbers first, by its own names, rules and messages; then the layers get
their small numbers. Nothing of the file is run: see :mod:`fiducial.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fiducial.checkpoints.reading import Checkpoint, read_raw
from fiducial.checkpoints.resolving import real_file
from fiducial.deploy.card import ENTRY, ModelCard
from fiducial.deploy.quantize import modelopt_torch, torchao
from fiducial.deploy.quantize.artefacts import quantizer_of
from fiducial.deploy.quantize.stored import Stored
from fiducial.errors import CheckpointError
from fiducial.prediction import Predictor
from fiducial.run.console import LOGGER
from fiducial.task import TaskRuntime

__all__ = ["open_quantized", "read_stored"]


def open_quantized(path: Path, runtime: TaskRuntime, key: str | None = None) -> Predictor:
    """A predictor over a quantized checkpoint.

    Raises: CheckpointError when it is damaged, of another network, or of a kind that is not opened here.
    """
    stored, card = read_stored(path, key), ModelCard.read(path)
    weights = runtime.checkpoint_names(stored.weights)
    predictor = runtime.torch_predictor(Checkpoint(path, "nested", weights, {}, {ENTRY: card.plain()}))
    try:
        stored.put(predictor.module)
    except AttributeError as error:
        raise CheckpointError(str(path), f"a layer that the network has not ({error})", "check the spec") from None
    LOGGER.info("%s: quantized (%s)", path, card.details.get("quantizer") or quantizer_of(path))
    return predictor


def read_stored(path: Path, key: str | None = None) -> Stored:
    """The weights of a quantized checkpoint. Raises: CheckpointError."""
    raw, _ = read_raw(real_file(path), key=key)
    if isinstance(raw, Mapping) and isinstance(raw.get("model_state_dict"), Mapping) and "modelopt_state" in raw:
        return modelopt_torch.read(raw, str(path))
    if isinstance(raw, Mapping) and any(isinstance(value, Mapping) for value in raw.values()):
        return torchao.read(raw, str(path))
    raise CheckpointError(str(path), "holds no quantized weights", "give what the quantize action wrote")
