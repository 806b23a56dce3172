"""Weights of ML Recog: from its own checkpoints, TAO's of every generation, and files of trunks or embedders alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fiducial.backbones.dinov2 import scaled_positions
from fiducial.backbones.names import backbones_of
from fiducial.backbones.weights import resize_patch_kernel
from fiducial.checkpoints.keys import backbone_keys, family_of
from fiducial.checkpoints.loading import LoadReport, load_into
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError
from mlrecog.model import Recognizer
from mlrecog.trunks import TRUNKS

__all__ = ["embedding_dim_of", "load_network", "start_from", "trunk_of"]

_PART = re.compile(r"(?:(?:module|model)\.)*(?:(trunk|0)|(embedder|1))\.(?:module\.)*")
"""Before the names of a trunk and of an embedder; in the first version of TAO the network was a sequence of the two."""
_WRAPPERS = re.compile(r"(?:(?:module|model|backbone|encoder)\.)*")
"""What may stand before the names of a part that is alone in its file."""
_ALIASES = ("net.0", "last_linear")
_LAST_LAYERS = (*_ALIASES, "embedding_fc.1")
"""The layer that gives the embedding: the linear embedder's by both its names, and the dual head's."""
_EMBEDDERS = (*(f"{alias}." for alias in _ALIASES), "classifier_feat", "embedding_fc.")
_NOT_USED = ("head.", "fc.", "mask_token")
"""Of classifiers and of training without labels. TAO's FAN carries a classifier, unused."""
_FAN_STEM = re.compile(r"patch_embed\.(?=stem\.|stages\.)")
"""As TAO's loader leaves these names: it cuts the first ``backbone.`` that it finds."""
_MOST = 0.9
"""Share of a trunk that must be in a file to begin with."""


def load_network(network: Recognizer, checkpoint: Checkpoint) -> LoadReport:
    """Put a checkpoint of ML Recog, ours or TAO's, into the network.

    NVDINOv2's positions are made to fit another image size, with a word in the report.
    Raises: CheckpointError when it is no checkpoint of ML Recog, or one of another trunk or width.
    """
    parts = _parts(checkpoint)
    if not (parts.trunk and parts.embedder):
        found = f"no checkpoint of ML Recog: it looks like {family_of(checkpoint.state_dict)} and has no embedder"
        fix = "; a backbone is model.pretrained_trunk_path" if parts.trunk else ""
        if parts.embedder:
            found, fix = "an embedder alone, no trunk", "; this file may be model.pretrained_embedder_path"
        raise CheckpointError(str(checkpoint.path), found, f"give what `mlrecog train` wrote{fix}")
    _check_trunk(network, parts.trunk, checkpoint)
    weights = {
        **{f"embedder.{name}": tensor for name, tensor in parts.embedder.items()},
        **{f"trunk.{name}": tensor for name, tensor in parts.trunk.items()},
        **parts.other,
    }
    renamed = replace(checkpoint, state_dict=weights)
    return load_into(network, renamed, what=str(checkpoint.path), strict=True, adapt=_resized, explain=_explained)


def embedding_dim_of(checkpoint: Checkpoint) -> int | None:
    """Width of the embedding that a checkpoint's embedder gives; None where it has none."""
    embedder = _parts(checkpoint).embedder
    return next((len(embedder[key]) for key in (f"{layer}.weight" for layer in _LAST_LAYERS) if key in embedder), None)


def start_from(
    network: Recognizer,
    *,
    trunk: Checkpoint | None = None,
    embedder: Checkpoint | None = None,
    model: Checkpoint | None = None,
) -> str:
    """Begin a training with these files, one after the other: where two have a part, the later counts.

    Each may be a whole checkpoint, or the part alone in any of the usual layouts. The layer that gives the embedding is
    left as initialised where that of ``model`` has another width.
    Returns what was loaded, in words. Raises: CheckpointError for a file of another trunk, one with less than nine
    tenths of it, or an embedder of which nothing fits.
    """
    said = []
    if trunk:
        said.append(_load_trunk(network, trunk).summary())
    if embedder:
        report = _load_embedder(network, embedder)
        if not report.matched:
            theirs = embedding_dim_of(embedder)
            found = f"an embedder of {theirs} numbers, where the network has {network.embedding_dim}"
            raise CheckpointError(str(embedder.path), found, f"set model.feat_dim to {theirs}, or leave the file out")
        said.append(report.summary())
    if model:
        said.append(_load_trunk(network, model).summary())
        has_embedder = bool(_parts(model).embedder)
        said.append(_load_embedder(network, model).summary() if has_embedder else "it has no embedder")
    return " · ".join(said)


def trunk_of(weights: Mapping[str, Tensor]) -> str | None:
    """The ``model.backbone`` that a trunk's tensors are of; None where they are of none."""
    if "layer4.0.conv3.weight" in weights:
        depth = sum(re.fullmatch(r"layer3\.\d+\.conv1\.weight", name) is not None for name in weights)
        return {6: "resnet_50", 23: "resnet_101"}.get(depth)
    archs = backbones_of({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return next((name for name, info in TRUNKS.items() if info.arch in archs), None)


@dataclass
class _Parts:
    """The tensors of a file, under the names that the parts give them."""

    trunk: dict[str, Tensor] = field(default_factory=dict)
    embedder: dict[str, Tensor] = field(default_factory=dict)
    other: dict[str, Tensor] = field(default_factory=dict)


def _parts(checkpoint: Checkpoint) -> _Parts:
    parts = _Parts()
    for key, tensor in checkpoint.state_dict.items():
        match = _PART.match(key)
        side = parts.other if match is None else parts.trunk if match[1] else parts.embedder
        side[key[match.end() :] if match else key] = tensor
    if not parts.trunk and not parts.embedder:
        parts = _alone(checkpoint)
    parts.trunk = {
        _FAN_STEM.sub("patch_embed.backbone.", name): tensor
        for name, tensor in parts.trunk.items()
        if not name.startswith(_NOT_USED)
    }
    for name, other in (_ALIASES, _ALIASES[::-1]):
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in parts.embedder:
                parts.embedder.setdefault(f"{other}.{kind}", parts.embedder[f"{name}.{kind}"])
    return parts


def _alone(checkpoint: Checkpoint) -> _Parts:
    """A file of nothing but an embedder or a backbone."""

    def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_WRAPPERS.sub("", key, count=1): tensor for key, tensor in weights.items()}

    weights = bare(checkpoint.state_dict)
    if any(name.startswith(_EMBEDDERS) for name in weights):
        return _Parts(embedder=weights)
    return _Parts(trunk=bare(backbone_keys(checkpoint.state_dict, tao_model=checkpoint.meta.get("tao_model"))))


def _load_trunk(network: Recognizer, checkpoint: Checkpoint) -> LoadReport:
    weights = _parts(checkpoint).trunk
    _check_trunk(network, weights, checkpoint)
    what, renamed = f"trunk from {checkpoint.path}", replace(checkpoint, state_dict=weights)
    return load_into(network.trunk, renamed, what=what, min_match=_MOST, adapt=_resized)


def _load_embedder(network: Recognizer, checkpoint: Checkpoint) -> LoadReport:
    weights = _parts(checkpoint).embedder
    if not weights.keys() & network.embedder.state_dict().keys():
        found = "its embedder is that of another kind of backbone" if weights else "no embedder in it"
        raise CheckpointError(str(checkpoint.path), found, "give a file trained with the same model.backbone")
    what, renamed = f"embedder from {checkpoint.path}", replace(checkpoint, state_dict=weights)
    last = tuple(f"{layer}.*" for layer in _LAST_LAYERS)
    return load_into(network.embedder, renamed, what=what, min_match=0.0, size_dependent=last)


def _check_trunk(network: Recognizer, weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """A trunk of another family, depth or width would be told of by every tensor, or lose what it has learned."""
    wanted = network.trunk.state_dict()
    mine, held = trunk_of(wanted) or family_of(wanted), trunk_of(weights) or family_of(weights)
    if not weights:
        found, fix = "no trunk in it", f"give a file of {family_of(wanted)}"
    elif family_of(weights) != family_of(wanted):
        found, fix = f"a file of {held}, where the network's trunk is {mine}", f"give a file of {family_of(wanted)}"
    elif held in TRUNKS and held != mine:
        found, fix = f"the file holds {held}, the network {mine}", f"give a file of {mine}"
    elif apart := _apart(weights, wanted):
        found, fix = f"a {held} of other sizes than {mine}: {apart}", f"give a file of {mine}"
        if "blocks.0.mlp.fc1.weight" in wanted:
            fix += ": NVIDIA's NVDINOv2, whose MLP is gated, not Meta's DINOv2"
    else:
        return
    fix += f", or set model.backbone to {held}" if held in TRUNKS else ""
    raise CheckpointError(str(checkpoint.path), found, fix)


def _explained(name: str, wanted: tuple[int, ...] | None, held: tuple[int, ...] | None) -> str:
    """What makes the last layer as wide as the file's; nothing for other tensors."""
    is_last = name.removeprefix("embedder.").rpartition(".")[0] in _LAST_LAYERS
    return f"set model.feat_dim to {held[0]}" if is_last and wanted and held else ""


def _apart(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor of another size, else how many blocks' tensors are too many, else nothing."""
    for name in sorted(wanted.keys() & weights.keys()):
        shape, want = tuple(weights[name].shape), tuple(wanted[name].shape)
        if shape != want and _resized(name, weights[name], want) is None:
            return f"{name} is {list(shape)}, not {list(want)}"
    spare = [name for name in weights if name not in wanted and re.match(r"blocks\.|layer\d\.", name)]
    return f"{len(spare)} tensors are too many ({spare[0]}, …)" if spare else ""


def _resized(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """NVDINOv2's positions for another grid, by DINO's rule, and its kernel for other patches; None for all else."""
    if name.endswith("pos_embed") and tensor.ndim == 3 and tensor.shape[-1] == shape[-1]:
        side = math.isqrt(shape[1] - 1)
        try:
            return scaled_positions(tensor, (side, side))
        except ValueError:  # not square: of a network with other tokens
            return None
    if name.endswith("patch_embed.proj.weight") and tensor.ndim == 4 and tensor.shape[:2] == shape[:2]:
        return resize_patch_kernel(tensor, shape[-1])
    return None
