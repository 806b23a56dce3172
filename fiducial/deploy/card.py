"""The model card: what a model file says of itself, so that whoever runs it prepares its inputs as in training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial import __version__
from fiducial.deploy.digest import file_digest
from fiducial.deploy.onnx_file import OnnxFile, read_onnx
from fiducial.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from fiducial.checkpoints.reading import Checkpoint

__all__ = ["ENTRY", "ModelCard", "TensorCard", "sidecar", "weights_hash"]

ENTRY = "fiducial"
"""Where the card stands in a checkpoint (a key) and in an ONNX file (an entry of its metadata, as JSON)."""
_TEXTS = ("network", "task", "backbone", "colours", "weights", "file")


@dataclass(frozen=True)
class TensorCard:
    """One input or output of a model: the shape of one item, its type, what its axes are."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = ""
    """Of an image, the order of its axes with the batch: ``NCHW``, ``NHWC``; several images have an axis N more."""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {"shape": list(self.shape), "dtype": self.dtype, **({"layout": self.layout} if self.layout else {})}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> TensorCard:
        """The card of plain data. Raises: as :meth:`ModelCard.of`."""
        return cls(tuple(map(int, said["shape"])), str(said["dtype"]), str(said.get("layout", "")))


@dataclass(frozen=True)
class ModelCard:
    """What a model must say of itself. Every part may be missing in a file that another program wrote."""

    network: str = ""
    task: str = ""
    backbone: str = ""
    inputs: Mapping[str, TensorCard] = field(default_factory=dict)
    outputs: Mapping[str, TensorCard] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    """Subtracted from each channel of an image in 0..1."""
    std: tuple[float, ...] = ()
    """Each channel is divided by it then."""
    colours: str = "RGB"
    """Order of the channels."""
    classes: tuple[str, ...] = ()
    threshold: float | None = None
    """What the network's decision compares its score with."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Programs that made the file."""
    weights: str = ""
    """SHA-256 of the weights (:func:`weights_hash`)."""
    file: str = ""
    """SHA-256 of the file that a card stands beside (:func:`file_digest`); in a card inside of one there is none."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What only the task itself understands, as plain data."""

    @property
    def is_exported(self) -> bool:
        """Whether it is of a graph, which cannot be changed any more, and not of weights alone."""
        return bool(self.outputs)

    def plain(self) -> dict[str, Any]:
        """As plain data; ``details`` stand beside the rest, parts that are empty are left out."""
        tensors = {
            name: {key: tensor.plain() for key, tensor in getattr(self, name).items()} for name in ("inputs", "outputs")
        }
        lists = {name: list(getattr(self, name)) for name in ("mean", "std", "classes")}
        rest = {name: getattr(self, name) for name in (*_TEXTS, "threshold")}
        said = {**rest, **tensors, **lists, "versions": dict(self.versions)}
        return {**{name: value for name, value in said.items() if value not in (None, "", [], {})}, **self.details}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> ModelCard:
        """The card of plain data. Raises: ValueError, TypeError or AttributeError for data that is no card."""
        known = {item.name for item in fields(cls)} - {"details"}
        parts: dict[str, Any] = {name: said[name] for name in said if name in known}
        for name in ("inputs", "outputs"):
            parts[name] = {key: TensorCard.of(tensor) for key, tensor in (parts.get(name) or {}).items()}
        for name in ("mean", "std"):
            parts[name] = tuple(_number(value) for value in parts.get(name) or ())
        if 0 in parts["std"]:
            raise ValueError("a std of 0")
        if parts.get("threshold") is not None:
            parts["threshold"] = _number(parts["threshold"])
        for name in _TEXTS:
            if not isinstance(parts.get(name, ""), str):
                raise TypeError(f"{name} is no text")
        parts["classes"] = tuple(map(str, parts.get("classes") or ()))
        parts["versions"] = {str(name): str(value) for name, value in (parts.get("versions") or {}).items()}
        return cls(**parts, details={name: value for name, value in said.items() if name not in known})

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> ModelCard:
        """What a checkpoint says of itself; of a foreign one only the program that wrote it is known."""
        raw = checkpoint.raw if isinstance(checkpoint.raw, Mapping) else {}
        card = cls._checked(raw.get(ENTRY) or {}, checkpoint.path)
        lightning = checkpoint.meta.get("pytorch-lightning_version")
        return replace(card, versions={**card.versions, "pytorch-lightning": str(lightning)}) if lightning else card

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """The card of a model file that is no checkpoint: inside an ONNX file, else beside the file; else empty.

        Raises: CheckpointError when the card, or the ONNX file, cannot be read, or the card is of another file.
        """
        return cls.of_onnx(read_onnx(path)) if path.suffix.lower() == ".onnx" else cls.beside(path)

    @classmethod
    def of_onnx(cls, file: OnnxFile) -> ModelCard:
        """The card inside an ONNX file, else beside it. Raises: as :meth:`read`."""
        inside = file.metadata.get(ENTRY)
        return cls.beside(file.path) if inside is None else cls._parsed(inside, file.path)

    @classmethod
    def beside(cls, path: Path) -> ModelCard:
        """The card that stands beside a file; empty where there is none. Raises: as :meth:`read`."""
        place = sidecar(path)
        if not place.is_file():
            return cls()
        try:
            card = cls._parsed(place.read_bytes(), place)
        except OSError as error:
            raise CheckpointError(str(place), f"cannot be read ({error.strerror})", "check the file") from None
        if card.file and card.file != file_digest(path):
            fix = f"copy the card of this {path.name} beside it, or export the model again"
            raise CheckpointError(str(place), f"the card of another {path.name}", fix)
        return card

    def write_beside(self, path: Path) -> Path:
        """Write the card beside a file that is there, to stay with just this file; returns where. Raises: OSError."""
        place = sidecar(path)
        text = json.dumps(replace(self, file=file_digest(path)).plain(), indent=2, ensure_ascii=False)
        place.write_text(f"{text}\n", encoding="utf-8")
        return place

    @classmethod
    def _parsed(cls, text: str | bytes, path: Path) -> ModelCard:
        try:
            return cls._checked(json.loads(text), path)
        except (ValueError, RecursionError):
            return cls._checked(None, path)

    @classmethod
    def _checked(cls, said: Any, path: Path) -> ModelCard:
        try:
            card = cls.of(said)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
            raise CheckpointError(
                str(path), "its model card cannot be read", "export the model again, or train it anew"
            ) from None
        if card.colours != "RGB":
            found = f"takes colours in the order {card.colours!r}"
            raise CheckpointError(str(path), found, "export it for RGB, which is how images are read")
        return card

    def stamped(self, state_dict: Mapping[str, Tensor] | None = None) -> ModelCard:
        """The card with the versions of what writes it, and the hash of the weights."""
        import torch

        versions = {**self.versions, "fiducial": __version__, "torch": str(torch.__version__)}
        return replace(self, versions=versions, weights=weights_hash(state_dict) if state_dict else self.weights)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def sidecar(path: Path) -> Path:
    """Where the card of a file stands beside it."""
    return path.with_name(f"{path.name}.card.json")


def weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, in the order of their names."""
    import torch

    total = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
