"""Weights of a whole network: from a checkpoint, or what a training begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fiducial.backbones.weights import KEY_MAPS, load_backbone
from fiducial.checkpoints.keys import bare_backbone
from fiducial.checkpoints.loading import Adapt, LoadReport, is_shapes_alone, load_into
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError, Problem
from fiducial.run.console import LOGGER
from fiducial.training.checks import WEIGHTS_KEY

__all__ = ["PREFIX", "load_network", "start_weights"]

PREFIX = "model."
"""What the names of a network's tensors begin with in a checkpoint: it is the attribute ``model`` of a module."""
UNUSED = ("model.backbone.norm.*",)
"""Of TAO's ViT adapters: not used, and absent from files of TAO up to 6.25.7."""


def load_network(
    network: nn.Module,
    checkpoint: Checkpoint,
    *,
    explain: Callable[[Mapping[str, Tensor]], Iterable[Problem]],
    strict: bool = True,
    drop: tuple[str, ...] = (),
    size_dependent: tuple[str, ...] = (),
    adapt: Adapt | None = None,
) -> LoadReport:
    """Put a checkpoint's weights into a network; names may begin with ``model.`` or not.

    ``explain`` names the spec keys that contradict the checkpoint's tensors, before anything is loaded. ``drop``: names
    of tensors that are no weights. ``strict``: every tensor is needed; else those of ``size_dependent`` (patterns of
    the network's own names) keep their values where they have another size.

    Raises: CheckpointError naming the keys, or the tensors, that differ.
    """
    weights = {key: value for key, value in checkpoint.state_dict.items() if key not in drop}
    if not any(key.startswith(PREFIX) for key in weights):
        weights = {f"{PREFIX}{key}": value for key, value in weights.items()}
    if family := bare_backbone(weights):
        fix = f"give a checkpoint of the whole network here; a backbone's file belongs into {WEIGHTS_KEY}"
        raise CheckpointError(str(checkpoint.path), f"a file of {family} alone, without the network around it", fix)
    found = list(explain(weights))
    if found:
        raise CheckpointError.of(found)
    report = load_into(
        nn.ModuleDict({"model": network}),
        Checkpoint(checkpoint.path, checkpoint.kind, weights, checkpoint.meta, None),
        key_maps=KEY_MAPS,
        what=str(checkpoint.path),
        strict=strict,
        allow=UNUSED,
        size_dependent=() if strict else tuple(f"{PREFIX}{pattern}" for pattern in size_dependent),
        adapt=adapt,
    )
    if not is_shapes_alone(network):
        LOGGER.info("%s", report.summary())
    return report


def start_weights(
    network: nn.Module,
    *,
    whole: str | None,
    backbone: Any,
    role: str,
    image_size: tuple[int, int],
    encryption_key: str | None,
    load: Callable[[Checkpoint], LoadReport],
) -> str:
    """Load what a training begins with; returns what came from where, in words (empty when nothing is named).

    ``whole`` (``train.pretrained_model_path``) is handed to ``load``; without it the file that the ``backbone`` section
    names goes into ``network.backbone``. A network on torch's device ``meta`` is only compared with the file.
    """
    from fiducial.checkpoints.reading import read

    if whole:
        device = "meta" if is_shapes_alone(network) else "cpu"
        return load(read(whole, device=device, key=encryption_key, where="train.pretrained_model_path")).summary()
    if not backbone.pretrained_backbone_path:
        return ""
    report = load_backbone(
        network.backbone,  # type: ignore[arg-type]
        backbone.type,
        role,
        backbone.pretrained_backbone_path,
        image_size=image_size,
        key=WEIGHTS_KEY,
        encryption_key=encryption_key,
    )
    return report.summary()
