"""What a gallery says of itself: the model that its embeddings are of, and when a picture is of none of its classes.

No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fiducial.errors import CheckpointError, DatasetError, Problem, one_line

__all__ = ["FORMAT", "GalleryCard", "ModelFacts"]

FORMAT = 1
"""Version of the files of a gallery."""
_SHOWN = 12
"""Characters of a hash that a message shows."""
_MAX_SIDE = 1 << 16


@dataclass(frozen=True)
class ModelFacts:
    """A model, and how pictures are prepared for it. Equal weights are one model, in whatever file they are.

    ``weights``: SHA-256 (:func:`fiducial.deploy.card.weights_hash`). ``image_size``: (height, width). ``file`` and
    ``backbone`` are only told.
    """

    weights: str
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone: str = ""
    file: str = ""
    network: str = "ml_recog"

    def __str__(self) -> str:
        said = " ".join(part for part in (self.backbone, self.file) if part)
        return f"{said or self.network} (weights {self.weights[:_SHOWN]})"

    def differs(self, given: ModelFacts, where: str) -> Iterator[Problem]:
        """Why embeddings of ``given`` cannot be compared with this model's."""
        if given.weights != self.weights or given.network != self.network:
            fix = "give that model, or build another gallery with this one"
            yield Problem(where, f"built with {self}, and searched or extended with {given}", fix)
        if given.image_size != self.image_size:
            (tall, wide), (height, width) = self.image_size, given.image_size
            found = f"built with pictures of {wide} x {tall}, and given {width} x {height}"
            yield Problem(where, found, f"set model.input_width={wide} model.input_height={tall}")
        for name in ("mean", "std"):
            own, other = getattr(self, name), getattr(given, name)
            if len(own) != len(other) or any(abs(a - b) > 1e-6 for a, b in zip(own, other, strict=True)):
                found = f"built with a {name} of {list(own)}, and given {list(other)}"
                yield Problem(where, found, f"set dataset.pixel_{name}={list(own)}")


@dataclass(frozen=True)
class GalleryCard:
    """``dim``: numbers of an embedding. ``threshold``, ``margin``: see :meth:`mlrecog.gallery.Found.decisions`."""

    model: ModelFacts
    dim: int
    threshold: float | None = None
    margin: float | None = None

    def check(self, given: ModelFacts, where: str) -> None:
        """Raises: CheckpointError naming both, when the gallery is of another model or of other preprocessing."""
        if problems := list(self.model.differs(given, where)):
            raise CheckpointError.of(problems)

    def deciding(self, threshold: float | None, margin: float | None) -> GalleryCard:
        """The same with another threshold and margin, where they are not None."""
        return replace(
            self,
            threshold=self.threshold if threshold is None else threshold,
            margin=self.margin if margin is None else margin,
        )

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, said: Any, where: str) -> GalleryCard:
        """The card of plain data. Raises: DatasetError naming ``where`` for data that is none."""
        if isinstance(said, Mapping) and isinstance(said.get("format"), int) and said["format"] > FORMAT:
            found = f"a gallery in format {said['format']}; this version reads up to {FORMAT}"
            raise DatasetError(where, found, "update this program")
        try:
            model = said["model"]
            height, width = (_whole(side, _MAX_SIDE) for side in model["image_size"])
            facts = ModelFacts(
                weights=_text(model["weights"]),
                image_size=(height, width),
                mean=tuple(_number(value) for value in model["mean"]),
                std=tuple(_number(value) for value in model["std"]),
                **{name: _text(model[name]) for name in ("backbone", "file", "network")},
            )
            decide = {name: None if said[name] is None else _number(said[name]) for name in ("threshold", "margin")}
            return cls(facts, _whole(said["dim"], _MAX_SIDE), **decide)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            found = f"is no gallery's description ({type(error).__name__}: {one_line(error, 100)})"
            raise DatasetError(where, found, "copy the gallery again, or build it anew") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _whole(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise TypeError(f"{value!r} is no size")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
