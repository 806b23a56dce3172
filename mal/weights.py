"""Weights of MAL: from its own checkpoints, TAO's, and files of plain vision transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from fiducial.backbones.fan import FanMap
from fiducial.backbones.vit import MapBackbone
from fiducial.backbones.vit_files import as_plain_vit
from fiducial.backbones.vit_transformers import timm_names
from fiducial.checkpoints.keys import backbone_keys, bare_backbone, family_of
from fiducial.checkpoints.loading import LoadReport, load_into
from fiducial.checkpoints.reading import Checkpoint
from fiducial.errors import CheckpointError
from mal.model import MaskNetwork

__all__ = ["BACKBONE_HEAD", "is_mal", "load_networks", "start_from"]

SIDES = ("student", "teacher")
BACKBONE_HEAD = "*backbone.head.*"
"""The classifier of the backbone: unused, and absent from MAE's files and from the research code's checkpoints."""
_PREFIXES = ("module.", "model.", "backbone.", "encoder.")
_STEM = "patch_embed.proj.0."


def load_networks(student: MaskNetwork, teacher: MaskNetwork, checkpoint: Checkpoint) -> LoadReport:
    """Put a checkpoint of MAL into both networks. Where it has a student alone, the teacher is its copy.

    Raises: CheckpointError when it is no MAL checkpoint, or one of another architecture.
    """
    weights = dict(checkpoint.state_dict)
    _refuse_others(weights, checkpoint)
    if not any(key.startswith("teacher.") for key in weights):
        weights |= {
            key.replace("student.", "teacher.", 1): v for key, v in weights.items() if key.startswith("student.")
        }
    both = nn.ModuleDict({"student": student, "teacher": teacher})
    renamed = Checkpoint(checkpoint.path, checkpoint.kind, weights, checkpoint.meta, None)
    return load_into(both, renamed, what=str(checkpoint.path), strict=True, allow=(BACKBONE_HEAD,))


def start_from(student: MaskNetwork, teacher: MaskNetwork, checkpoint: Checkpoint, *, strict: bool = True) -> str:
    """Begin a training with a MAL checkpoint (its student goes into both networks) or a backbone's weights.

    Returns what was loaded, in words. Raises: CheckpointError for files that do not fit; with ``strict`` also where
    less than nine tenths of the backbone are in the file.
    """
    weights = dict(checkpoint.state_dict)
    sided = is_mal(weights)
    if sided:
        weights = {key.removeprefix("student."): v for key, v in weights.items() if key.startswith("student.")}
    else:
        weights = _of_backbone(student.backbone, weights, checkpoint)
    if any(key.removeprefix("backbone.").startswith(_STEM) for key in weights):
        found = "its patch embedding is a stack of convolutions, as in some files of the research code"
        raise CheckpointError(str(checkpoint.path), found, "give a checkpoint of TAO, or a ViT-MAE file")
    share = 0.9 if strict else 0.0
    reports = [
        load_into(
            network if sided else network.backbone,
            Checkpoint(checkpoint.path, checkpoint.kind, weights, checkpoint.meta, None),
            what=str(checkpoint.path),
            allow=("*head.*", "fc_norm.*", "decoder*", "mask_token"),
            min_match=share,
        )
        for network in (student, teacher)
    ]
    return reports[0].summary()


def _of_backbone(backbone: MapBackbone, weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A published backbone's tensors under the names of ours."""
    if isinstance(backbone, FanMap):
        return backbone_keys(weights, tao_model=checkpoint.meta.get("tao_model"))
    return as_plain_vit(timm_names(_plain_names(weights)))


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers put before all of them."""
    names = dict(weights)
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if names and all(key.startswith(prefix) for key in names):
                names = {key.removeprefix(prefix): value for key, value in names.items()}
    return names


def is_mal(names: Iterable[str]) -> bool:
    """Whether these are the names of a MAL checkpoint's tensors."""
    return any(name.startswith("student.") for name in names)


def _refuse_others(weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    if is_mal(weights):
        return
    backbone = bare_backbone(weights)
    found = f"{family_of(weights)}{' alone' if backbone else ''}, no MAL checkpoint"
    fix = "give what `mal train` wrote" + ("; a backbone is train.pretrained_model_path" if backbone else "")
    raise CheckpointError(str(checkpoint.path), found, fix)
