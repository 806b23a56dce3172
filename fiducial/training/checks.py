"""Rules on the sections of ``fiducial.training.sections``. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from fiducial.backbones.hub import check_weights_source, local_weights
from fiducial.backbones.names import BACKBONES
from fiducial.checkpoints.resolving import real_file
from fiducial.errors import Problem, UserError
from fiducial.training.sections import BackboneSection, TensorboardSection

__all__ = [
    "PRECISIONS",
    "WEIGHTS_KEY",
    "check_backbone_weights",
    "check_frozen",
    "check_precision",
    "check_tensorboard",
]

WEIGHTS_KEY = "model.backbone.pretrained_backbone_path"
PRECISIONS = frozenset(
    {"32-true", "32", "16-mixed", "16", "bf16-mixed", "bf16", "bf16-true", "16-true", "64-true", "64"}
    | {"transformer-engine"}
)
"""Number formats that Lightning knows."""


def check_precision(precision: str) -> Iterator[Problem]:
    """A number format that Lightning does not know."""
    if precision not in PRECISIONS:
        yield Problem("train.precision", f"found {precision!r}", f"use one of {', '.join(sorted(PRECISIONS))}")


def check_tensorboard(board: TensorboardSection, num_epochs: int) -> Iterator[Problem]:
    """Pictures that come too seldom to be seen."""
    if board.enabled and board.infrequent_logging_frequency > num_epochs:
        found = f"{board.infrequent_logging_frequency} is more than train.num_epochs {num_epochs}"
        fix = "lower it; only the first epoch is shown"
        yield Problem("train.tensorboard.infrequent_logging_frequency", found, fix, "warning")


def check_frozen(backbone: BackboneSection, whole: str | None) -> Iterator[Problem]:
    """A backbone that is frozen as it was initialised; ``whole`` names weights of the whole network."""
    if backbone.freeze_backbone and not (backbone.weights or whole):
        found = "true, but model.backbone.pretrained_backbone_path is not set"
        yield Problem("model.backbone.freeze_backbone", found, "give weights, or set freeze_backbone: false")
    info = BACKBONES.get(backbone.type)
    if info and info.published and not backbone.freeze_backbone:
        found = f"false with {info.name}, which TAO trains only frozen"
        fix = "set freeze_backbone: true; training all of it"
        yield Problem("model.backbone.freeze_backbone", found, fix, "warning")


def check_backbone_weights(backbone: BackboneSection, whole: str | None) -> Iterator[Problem]:
    """Pretrained weights that should be on this machine and are not, or that must be fetched. Nothing is fetched."""
    path = backbone.pretrained_backbone_path
    try:
        if whole:
            real_file(whole, where="train.pretrained_model_path")
        elif path:
            yield from check_weights_source(path, backbone.type, key=WEIGHTS_KEY)
        elif backbone.weights and local_weights(backbone.weights, key=WEIGHTS_KEY) is None:
            # TAO would download it; here nothing is fetched that the spec does not name
            found = f"empty, and {backbone.weights} is not in this machine's hub cache"
            fix = f"set it to {backbone.weights} to fetch that (gated: HF_TOKEN), or to a file"
            yield Problem(WEIGHTS_KEY, found, fix)
    except UserError as error:
        yield from error.problems
