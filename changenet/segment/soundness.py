"""Outputs that are not numbers: whichever class they would be taken for, nobody could tell that it was wrong."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fiducial.errors import MetricError, Problem, UserError

__all__ = ["is_unsound", "unsound"]

_FIX = "no mask is made of that: check the checkpoint, its precision, and the normalisation"


def is_unsound(logit_BKHW: Tensor) -> Tensor:
    """Whether some logit of an image is NaN or infinite: bool ``(B,)``."""
    return ~logit_BKHW.isfinite().flatten(1).all(1)


def unsound(places: Iterable[str]) -> UserError:
    """The error that names the images."""
    return MetricError.of(Problem(place, "outputs of the model are NaN or infinite", _FIX) for place in places)
